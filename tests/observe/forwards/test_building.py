"""What runs while a module is built: it may learn a size so, and be initialised or loaded afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.nets import batch, rules, watching


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def probed_size(backbone: nn.Module) -> int:
    """A helper between the model that is built and the part that runs."""
    size: int = backbone(torch.zeros(2, 4)).shape[1]
    return size


class Probing(nn.Module):
    """Runs its backbone, in training mode at that, before it is initialised."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.head = nn.Linear(probed_size(self.backbone), 2)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y


class Nesting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Probing()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


@pytest.mark.parametrize("kind", [Probing, Nesting])
def test_the_model_is_watched_once_it_is_built(kind: type[nn.Module]) -> None:
    with watching() as g:
        model = kind()
        model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
        model.eval()(batch())
    assert g.violations == []
    assert [model.forwards for model in g.models] == [1]


@pytest.mark.parametrize("kind", [Probing, Nesting])
def test_once_it_is_built_its_mode_counts(kind: type[nn.Module]) -> None:
    with watching() as g:
        kind()(batch())
    assert rules(g) == {"train-mode", "state-mutated"}


def test_a_model_that_is_built_inside_a_forward_is_no_mistake_of_that() -> None:
    class Builds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            Probing()
            y: Tensor = self.core(x)
            return y

    with watching(strict=True, allow=["random-forward"]) as g:
        Builds().eval()(batch())
    assert g.violations == []


def test_an_object_that_is_no_module_is_built() -> None:
    """Look-alike: a service that predicts in its `__init__` does inference."""

    class Service:
        def __init__(self, model: nn.Module) -> None:
            self.answer = model(batch())

    with watching() as g:
        Service(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    assert rules(g) == {"train-mode"}
