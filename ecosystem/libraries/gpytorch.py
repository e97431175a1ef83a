"""Exact Gaussian processes of GPyTorch, one for each kernel, and variational ones, one for each strategy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand

REQUIREMENTS = ("torch==2.13.0", "gpytorch==1.15.2")

KERNELS: dict[str, dict[str, Any]] = {
    "ConstantKernel": {},
    "CosineKernel": {},
    "LinearKernel": {},
    "MaternKernel": {"nu": 1.5},
    "PeriodicKernel": {},
    "PiecewisePolynomialKernel": {"q": 2},
    "PolynomialKernel": {"power": 2},
    "RBFKernel": {},
    "RBFKernel-ard": {"ard_num_dims": 2},
    "RFFKernel": {"num_samples": 5, "num_dims": 2},
    "RQKernel": {},
    "SpectralMixtureKernel": {"num_mixtures": 2, "ard_num_dims": 2},
}
LIKELIHOODS = ("GaussianLikelihood", "BernoulliLikelihood", "LaplaceLikelihood", "StudentTLikelihood", "BetaLikelihood")
STRATEGIES = ("VariationalStrategy", "UnwhitenedVariationalStrategy", "CiqVariationalStrategy")


def architectures() -> Iterator[Architecture]:
    """Yield models whose forward returns a distribution."""
    for name, settings in KERNELS.items():
        yield Architecture(f"exact-{name}", partial(_exact, name.partition("-")[0], settings), _inputs, _call)
        yield Architecture(f"prior-{name}", partial(_kernel, name.partition("-")[0], settings), _inputs, _covariance)
    for name in LIKELIHOODS:
        yield Architecture(name, partial(_likelihood, name), _inputs, _predict)
    for name in STRATEGIES:
        yield Architecture(name, partial(_variational, name), _inputs, _call)


def _kernel(name: str, settings: dict[str, Any]) -> Any:
    import gpytorch

    return gpytorch.kernels.ScaleKernel(getattr(gpytorch.kernels, name)(**settings))


def _exact(name: str, settings: dict[str, Any]) -> Any:
    import gpytorch

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self) -> None:
            x = rand(6, 2)
            super().__init__(x, x.sum(1), gpytorch.likelihoods.GaussianLikelihood())
            self.mean, self.kernel = gpytorch.means.ConstantMean(), _kernel(name, settings)

        def forward(self, x: Tensor) -> object:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    return Process()


def _variational(name: str) -> Any:
    import gpytorch
    from gpytorch import variational

    class Process(gpytorch.models.ApproximateGP):  # type: ignore[misc]
        def __init__(self) -> None:
            distribution = variational.CholeskyVariationalDistribution(4)
            super().__init__(getattr(variational, name)(self, rand(4, 2), distribution))
            self.mean, self.kernel = gpytorch.means.ConstantMean(), _kernel("RBFKernel", {})

        def forward(self, x: Tensor) -> object:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    return Process()


def _likelihood(name: str) -> Any:
    import gpytorch

    return getattr(gpytorch.likelihoods, name)()


def _inputs() -> dict[str, Any]:
    return {"x": rand(5, 2) + 2}


def _call(model: Any, x: Tensor) -> object:
    return model(x)


def _covariance(model: Any, x: Tensor) -> object:
    return model(x).to_dense()


def _predict(model: Any, x: Tensor) -> object:
    return model(x[:, 0])
