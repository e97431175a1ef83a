"""Forwards that run inside a module's `__init__`, for example to find out a size: they are not inference."""

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


def output_size(backbone: nn.Module) -> int:
    """A helper between the `__init__` of the model and the forward of its submodule."""
    size: int = backbone(torch.zeros(2, 4)).shape[1]
    return size


class FindsSize(nn.Module):
    """Runs its backbone in training mode before the weights are initialized."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.head = nn.Linear(output_size(self.backbone), 2)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.backbone(x))
        return y


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = FindsSize()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


@pytest.mark.parametrize("kind", [FindsSize, Nested])
def test_a_model_is_watched_after_its_init(kind: type[nn.Module]) -> None:
    with watching() as g:
        model = kind()
        model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
        model.eval()(batch())
    assert g.violations == []
    assert [model.forwards for model in g.window.models] == [1]


@pytest.mark.parametrize("kind", [FindsSize, Nested])
def test_training_mode_is_reported_after_init(kind: type[nn.Module]) -> None:
    with watching() as g:
        kind()(batch())
    assert rules(g) == {"train-mode", "state-mutated"}


def test_creating_a_model_inside_a_forward_is_clean() -> None:
    class CreatesModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            FindsSize()
            y: Tensor = self.core(x)
            return y

    with watching(strict=True, allow=["random-forward"]) as g:
        CreatesModel().eval()(batch())
    assert g.violations == []


def test_init_of_an_object_that_is_not_a_module_counts_as_inference() -> None:
    """A service that predicts in its `__init__` does inference."""

    class Service:
        def __init__(self, model: nn.Module) -> None:
            self.answer = model(batch())

    with watching() as g:
        Service(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    assert rules(g) == {"train-mode"}
