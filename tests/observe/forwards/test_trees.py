"""A tree that has been seen is looked at again where anything of it is otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.nets import rules, watching


class Noisy(nn.ReLU):
    """In the place of a layer that never draws."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(2, 2)).eval()


def noise(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output + torch.rand_like(output)


def swap(net: nn.Sequential) -> None:
    net[1] = Noisy().eval()


def swap_deep(net: nn.Sequential) -> None:
    inner = net[2]
    assert isinstance(inner, nn.Sequential)
    inner[1] = Noisy().eval()


def become(net: nn.Sequential) -> None:
    net[1].__class__ = Noisy


def hook(net: nn.Sequential) -> None:
    net[1].register_forward_hook(noise)


def patch(net: nn.Sequential) -> None:
    net[1].forward = lambda x: x + torch.rand_like(x)


def reseed(net: nn.Sequential) -> None:
    """Draws, and puts the place in the generator back, though not its numbers."""
    net[1].forward = lambda x: x + torch.rand(624).sum()


DRAWING = (swap, swap_deep, become, hook, patch, reseed)


@pytest.mark.parametrize("change", DRAWING)
def test_a_draw_that_a_known_tree_did_not_make(change: Callable[[nn.Sequential], None]) -> None:
    net = model()
    with torch.no_grad(), watching(net) as clean:
        net(torch.ones(1, 2))
        net(torch.ones(1, 2))
        assert rules(clean) == set()
        change(net)
        net(torch.ones(1, 2))
        assert rules(clean) == {"random-forward"}


@pytest.mark.parametrize("change", DRAWING)
def test_a_draw_among_layers_that_may_draw_in_training_mode(change: Callable[[nn.Sequential], None]) -> None:
    """What they draw hides nothing of what is drawn beside them."""
    net = model()
    net[2].train()
    with watching(net, train=["2", "2.*"], allow=["grad-mode"]) as window:
        for _ in range(3):
            net(torch.ones(1, 2))
        assert rules(window) == set()
        change(net)
        if change is swap_deep:
            net[2].eval()
        net(torch.ones(1, 2))
        assert rules(window) == {"random-forward"}


@pytest.mark.parametrize("path", ["0", "2.0", "3"])
def test_a_flag_that_is_set_by_hand(path: str) -> None:
    net = model()
    with torch.no_grad(), watching(net) as window:
        net(torch.ones(1, 2))
        net.get_submodule(path).training = True
        net(torch.ones(1, 2))
        assert rules(window) == {"train-mode"}


def test_a_flag_that_is_set_as_the_forward_runs() -> None:
    net = model()
    net[0].register_forward_hook(lambda *_: setattr(net[3], "training", True))
    with torch.no_grad(), watching(net) as window:
        net(torch.ones(1, 2))
        assert rules(window) == {"train-mode"}


def test_calls_from_two_lines_by_turns_are_told_apart() -> None:
    net = model().train()
    with torch.no_grad(), watching() as window:
        for _ in range(3):
            net(torch.ones(1, 2))
            net(torch.ones(1, 2))
        counts = {violation.at.line: violation.count for violation in window.violations if violation.at is not None}
    assert sum(counts.values()) in (3, 6)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
