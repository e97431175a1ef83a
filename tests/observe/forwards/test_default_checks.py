"""The checks that every guard applies to a forward, on faults and on harmless look-alikes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import Dropper, Net, Noisy, batch, compiled_in_place, only, rules, watching

pytestmark = pytest.mark.usefixtures("fresh")


# --- training mode without effect


@pytest.mark.parametrize(
    "run",
    [
        lambda x: nn.CrossEntropyLoss()(x, torch.zeros(8, dtype=torch.long)),
        lambda x: nn.Sequential(nn.Flatten(), nn.ReLU())(x),
        lambda x: nn.Sequential(nn.Softmax(-1), Dropper().eval())(x),
        lambda x: nn.DataParallel(Dropper().eval())(x),
        lambda x: nn.BatchNorm1d(4).eval()(x),
    ],
)
@torch.no_grad()
def test_training_mode_without_effect_is_clean(run: Callable[[Tensor], object]) -> None:
    with watching() as g:
        run(batch())
    assert not rules(g)


# --- autograd


@pytest.mark.parametrize(
    ("run", "recorded"),
    [
        (lambda x: Net().eval()(x), True),
        (lambda x: Net().eval().requires_grad_(False)(x), False),
        (lambda x: Net().eval().requires_grad_(False)(x.requires_grad_()), True),
        (lambda x: torch.no_grad()(Net().eval())(x.requires_grad_()), False),
        (lambda x: nn.Softmax(-1)(x.requires_grad_()), False),  # no model
        (lambda x: NoGradInside().eval()(x), False),
        (lambda x: NoGradOn().eval()(x), False),
        (lambda x: NoGradForAMask(nn.Linear(4, 4)).eval()(x), True),
        (lambda x: NoGradForAMask(nn.LSTM(4, 4)).eval()(x), True),
        (lambda x: NoGradForAMask(NoGradOn()).eval()(x), False),
        (lambda x: NoGradForAMask(nn.Linear(4, 4)).eval().requires_grad_(False)(x), False),
        (lambda x: GradInside().eval()(x), True),
        (lambda x: torch.no_grad()(GradInside().eval())(x), True),
    ],
)
def test_recording_autograd_is_reported(run: Callable[[Tensor], object], recorded: bool) -> None:
    with watching() as g:
        run(batch())
    assert rules(g) == ({"grad-mode"} if recorded else set())


class NoGradInside(Dropper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class NoGradOn(Dropper):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class NoGradForAMask(nn.Module):
    """Turns grad mode off for a part of its forward; its output is not a tensor, so it does not show that."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> SimpleNamespace:
        with torch.no_grad():
            mask = x != 0
        out = self.body(x)
        return SimpleNamespace(out=out[0] if isinstance(out, tuple) else out, mask=mask)


class GradInside(Dropper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


def test_the_fix_depends_on_who_turned_autograd_on() -> None:
    with watching() as g, torch.no_grad():
        GradInside().eval()(batch())
    assert only(g, "grad-mode").remedy.startswith("do not enable grad mode in the forward")
    with watching() as g:
        GradInside().eval()(batch())
    assert only(g, "grad-mode").remedy.startswith("call the model under torch.inference_mode()")


# --- batch statistics


@pytest.mark.parametrize(("tracked", "expected"), [(False, {"batch-stats"}), (True, set())])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: torch.compile(m, backend="eager"),
        compiled_in_place,
        lambda m: nn.Sequential(nn.ReLU(), cast(nn.Module, torch.compile(m, backend="eager"))),
        lambda m: nn.Sequential(nn.ReLU(), compiled_in_place(m)),
    ],
    ids=["plain", "compiled", "compiled in place", "a part compiled", "a part compiled in place"],
)
@torch.no_grad()
def test_batch_norm_without_running_statistics(
    wrap: Callable[[nn.Module], nn.Module], tracked: bool, expected: set[str]
) -> None:
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=tracked)).eval())
    with watching() as g:
        model.eval()(batch())
    assert rules(g) == expected


@torch.no_grad()
def test_training_mode_explains_batch_statistics() -> None:
    with watching() as g:
        nn.BatchNorm1d(4, track_running_stats=False)(batch())
    assert rules(g) == {"train-mode"}


# --- forwards that raise, and recursion


class Stop(BaseException):
    """Like the exceptions of `pytest.fail` and Ctrl-C, this is not an Exception."""


class Raises(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt, SystemExit, GeneratorExit])
@torch.no_grad()
def test_observation_continues_after_a_forward_that_raised(error: type[BaseException]) -> None:
    with watching() as g:
        with pytest.raises(error):
            nn.Sequential(nn.Linear(4, 4), Raises(error)).eval()(batch())
        torch.rand(1)  # outside of any forward
        Net().eval()(batch())
    assert not rules(g)
    with watching() as g:
        with pytest.raises(error):
            Raises(error).eval()(batch())
        Dropper()(batch())
        with pytest.raises(error):
            nn.Sequential(nn.Dropout(), Raises(error))(batch())
    assert [subject for v in g.violations for subject in v.subjects] == [
        "Dropper.drop (Dropout)",
        "Sequential.0 (Dropout)",
    ]


class Tree(nn.Module):
    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.merge = nn.Linear(8, 4)
        self.leaf = leaf

    def forward(self, node: Any) -> Tensor:
        out: Tensor = (
            self.leaf(node) if isinstance(node, Tensor) else self.merge(torch.cat([self(child) for child in node], -1))
        )
        return out


@pytest.mark.parametrize(("leaf", "expected"), [(nn.Tanh(), set()), (Noisy(), {"random-forward"})])
@torch.no_grad()
def test_a_recursive_model_is_one_forward(leaf: nn.Module, expected: set[str]) -> None:
    if isinstance(leaf, Noisy):
        leaf.head = nn.Linear(4, 4)
    x = batch()
    with watching() as g:
        Tree(leaf).eval()((x[0], ((x[1], x[2]), x[3])))
    assert rules(g) == expected
    assert [model.forwards for model in g.window.models] == [1]


# --- random draws


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: F.dropout(x, 1e-9), {"random-forward"}),
        (lambda x: F.dropout(x, 0.0), set()),
        (lambda x: F.dropout(x, training=False), set()),
        (lambda x: x + torch.randn_like(x), {"random-forward"}),
        (lambda x: x + torch.randn(4, generator=torch.Generator()), set()),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), {"random-forward"}),
        (lambda x: F.scaled_dot_product_attention(x, x, x), set()),
        (lambda x: torch.manual_seed(0) and x, {"random-forward"}),
        (lambda x: torch.empty_like(x).copy_(x), set()),
    ],
)
@torch.no_grad()
def test_random_draws_are_reported(forward: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    model = nn.Linear(4, 4).eval()
    model.forward = forward  # type: ignore[method-assign, assignment]
    with watching() as g:
        model(batch())
    assert rules(g) == expected


@torch.no_grad()
def test_draws_between_forwards_are_clean() -> None:
    model = Net().eval()
    with watching() as g:
        for _ in range(3):
            model(torch.randn(2, 4))
            torch.multinomial(model(batch()).softmax(-1), 1)
    assert not rules(g)


@torch.no_grad()
def test_a_draw_that_is_undone_is_clean() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return x @ torch.randn(4, 4)

    model = nn.Linear(4, 4).eval()
    model.forward = forward  # type: ignore[method-assign, assignment]
    with watching() as g:
        model(batch())
    assert not rules(g)


class Forked(Dropper):
    """Draws in a submodule, and restores the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.noisy = Noisy()

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            out: Tensor = self.noisy(x)
        return out


@torch.no_grad()
def test_a_draw_of_a_submodule_may_be_undone_by_its_parent() -> None:
    with watching() as g:
        Forked().eval()(batch())
    assert not rules(g)
