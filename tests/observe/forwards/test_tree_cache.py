"""The cached facts about a model are computed anew when one of its modules changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.nets import rules, watching


class Noisy(nn.ReLU):
    """Replaces a layer that never draws."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand_like(x)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.ReLU()), nn.Linear(2, 2)).eval()


def noise(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output + torch.rand_like(output)


def replace_layer(net: nn.Sequential) -> None:
    net[1] = Noisy().eval()


def replace_inner_layer(net: nn.Sequential) -> None:
    inner = net[2]
    assert isinstance(inner, nn.Sequential)
    inner[1] = Noisy().eval()


def change_class(net: nn.Sequential) -> None:
    net[1].__class__ = Noisy


def add_hook(net: nn.Sequential) -> None:
    net[1].register_forward_hook(noise)


def replace_forward(net: nn.Sequential) -> None:
    net[1].forward = lambda x: x + torch.rand_like(x)


def exhaust_generator(net: nn.Sequential) -> None:
    """Draw exactly as many numbers as the generator holds: its position is the same, its numbers are not."""
    net[1].forward = lambda x: x + torch.rand(624).sum()


CHANGES = (replace_layer, replace_inner_layer, change_class, add_hook, replace_forward, exhaust_generator)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_draws_is_noticed(change: Callable[[nn.Sequential], None]) -> None:
    net = model()
    with torch.no_grad(), watching(net) as clean:
        net(torch.ones(1, 2))
        net(torch.ones(1, 2))
        assert rules(clean) == set()
        change(net)
        net(torch.ones(1, 2))
        assert rules(clean) == {"random-forward"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_draws_is_noticed_next_to_layers_in_training_mode(
    change: Callable[[nn.Sequential], None],
) -> None:
    """The draws of these layers do not hide those of others."""
    net = model()
    net[2].train()
    with watching(net, train=["2", "2.*"], allow=["grad-mode"]) as window:
        for _ in range(3):
            net(torch.ones(1, 2))
        assert rules(window) == set()
        change(net)
        if change is replace_inner_layer:
            net[2].eval()
        net(torch.ones(1, 2))
        assert rules(window) == {"random-forward"}


@pytest.mark.parametrize("path", ["0", "2.0", "3"])
def test_a_training_flag_set_by_assignment_is_noticed(path: str) -> None:
    net = model()
    with torch.no_grad(), watching(net) as window:
        net(torch.ones(1, 2))
        net.get_submodule(path).training = True
        net(torch.ones(1, 2))
        assert rules(window) == {"train-mode"}


def test_a_training_flag_set_during_the_forward_is_noticed() -> None:
    net = model()
    net[0].register_forward_hook(lambda *_: setattr(net[3], "training", True))
    with torch.no_grad(), watching(net) as window:
        net(torch.ones(1, 2))
        assert rules(window) == {"train-mode"}


def test_alternating_calls_from_two_lines_are_counted() -> None:
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
