"""A class that replaces `nn.Module.__call__`: its calls are forwards like any other."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from tests.nets import batch, only, rules, watching


class Diffuser(nn.Module):
    """Runs its core past `forward`, as samplers and weather models do."""

    def __init__(self, *, gated: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.core = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.gated, self.in_place = gated, in_place

    def __call__(self, x: Tensor) -> Tensor:
        if self.in_place:
            x += 1
        y: Tensor = self.core(x) * self.scale
        return y + torch.randn_like(y) if self.training or not self.gated else y


class Inherits(Diffuser):
    """Its `__call__` is its base's."""


class Aliased(nn.Module):
    """Names torch's own, and so goes past what stands in its place."""

    __call__ = nn.Module.__call__

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.core(x)
        return y


class Polite(nn.Module):
    """Comes to torch's own: that is where it is seen, once."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(4, 4)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = super().__call__(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.core(x)
        return y


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield
    for kind in (Diffuser, Inherits, Aliased, Polite):
        assert not hasattr(kind.__call__, "__wrapped__")


@pytest.mark.parametrize("kind", [Diffuser, Inherits, Aliased, Polite])
def test_clean_and_seen_once(kind: type[nn.Module]) -> None:
    with watching(strict=True) as g:
        kind().eval()(batch())
    assert g.violations == []
    assert [model.forwards for model in g.models] == [1]


@pytest.mark.parametrize("kind", [Diffuser, Inherits])
def test_its_mode_is_asked(kind: type[nn.Module]) -> None:
    with watching() as g:
        kind()(batch())
    assert only(g, "train-mode").subjects[0] == f"{kind.__name__} ({kind.__name__})"


def test_what_it_draws_itself_is_told() -> None:
    with watching() as g:
        Diffuser(gated=False).eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == ("Diffuser (Diffuser)",)
    assert violation.cause is not None
    assert "randn_like" in violation.cause.source


def test_autograd_is_asked_of_it() -> None:
    with watching() as g, torch.enable_grad():
        Diffuser().eval()(batch())
    assert rules(g) == {"grad-mode"}


def test_its_inputs_are_asked() -> None:
    x = batch()
    with watching(strict=True) as g:
        Diffuser(in_place=True).eval()(x)
    assert only(g, "input-mutated").subjects == ("Diffuser (Diffuser)",)


def test_a_class_made_in_the_window_and_without_parts_is_found() -> None:
    with watching() as g:

        class Late(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.ones(4))

            def __call__(self, x: Tensor) -> Tensor:
                return x * self.w

        model = Late().eval()
        model(batch())
        model.w.add_(1)
    assert only(g, "state-mutated").subjects == ("Late.w",)
    assert not hasattr(Late.__call__, "__wrapped__")


def test_two_windows_at_once() -> None:
    with watching() as outer:
        with watching() as inner:
            Diffuser(gated=False).eval()(batch())
        assert hasattr(Diffuser.__call__, "__wrapped__")
    assert rules(inner) == rules(outer) == {"random-forward"}


def test_one_that_the_test_puts_there_meanwhile_stays() -> None:
    def call(self: nn.Module, x: Tensor) -> Tensor:
        return x

    class Patched(Diffuser):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    with watching():
        Patched()
        Patched.__call__ = call  # type: ignore[method-assign]
    assert Patched.__call__ is call


def test_a_type_that_is_defined_in_a_window_dies_as_without_one() -> None:
    with watching():

        class Late(nn.Module):
            pass

        Late()
        known = weakref.ref(Late)
        del Late
        gc.collect()
        assert known() is None
