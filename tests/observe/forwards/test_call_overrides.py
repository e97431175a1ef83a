"""Classes that override `nn.Module.__call__`: their calls are observed like any forward."""

from __future__ import annotations

import collections.abc
import gc
import weakref
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import GuardError, guard
from tests.nets import batch, only, rules, watching

T = TypeVar("T")


class Diffuser(nn.Module):
    """Has its own `__call__` instead of `forward`, as samplers and weather models do."""

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
    """Inherits the `__call__` of its base class."""


class Aliased(nn.Module):
    """Has torch's own `__call__` as a class attribute, which is not the patched one."""

    __call__ = nn.Module.__call__

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.core(x)
        return y


class CallsSuper(nn.Module):
    """Calls `nn.Module.__call__`, where its forward is observed, once."""

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
    for kind in (Diffuser, Inherits, Aliased, CallsSuper):
        assert not hasattr(kind.__call__, "__wrapped__")


@pytest.mark.parametrize("kind", [Diffuser, Inherits, Aliased, CallsSuper])
def test_each_kind_is_clean_and_counted_once(kind: type[nn.Module]) -> None:
    with watching(strict=True) as g:
        kind().eval()(batch())
    assert g.violations == []
    assert [model.forwards for model in g.window.models] == [1]


@pytest.mark.parametrize("kind", [Diffuser, Inherits])
def test_training_mode_is_reported(kind: type[nn.Module]) -> None:
    with watching() as g:
        kind()(batch())
    assert only(g, "train-mode").subjects[0] == f"{kind.__name__} ({kind.__name__})"


def test_random_draws_in_call_are_reported() -> None:
    with watching() as g:
        Diffuser(gated=False).eval()(batch())
    violation = only(g, "random-forward")
    assert violation.subjects == ("Diffuser (Diffuser)",)
    assert violation.cause is not None
    assert "randn_like" in violation.cause.source


def test_autograd_is_reported() -> None:
    with watching() as g, torch.enable_grad():
        Diffuser().eval()(batch())
    assert rules(g) == {"grad-mode"}


def test_changed_inputs_are_reported() -> None:
    x = batch()
    with watching(strict=True) as g:
        Diffuser(in_place=True).eval()(x)
    assert only(g, "input-mutated").subjects == ("Diffuser (Diffuser)",)


def test_a_class_defined_inside_the_window_is_observed() -> None:
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


@pytest.mark.parametrize("calls_super", [False, True])
def test_a_class_is_observed_if_the_init_subclass_of_its_base_calls_no_other(calls_super: bool) -> None:
    names: list[str] = []

    class Base(Diffuser):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            names.append(cls.__name__)

    class Polite(Diffuser):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            names.append(cls.__name__)

    before = [vars(kind)["__init_subclass__"] for kind in (Base, Polite)]
    with watching() as g:

        class Late(Polite if calls_super else Base):  # type: ignore[misc]
            def __call__(self, x: Tensor) -> Tensor:
                return torch.rand_like(x)

        assert vars(Polite)["__init_subclass__"] is before[1]
        Late().eval()(batch())
    assert rules(g) == {"random-forward"}
    assert names == ["Late"]
    assert [vars(kind)["__init_subclass__"] for kind in (Base, Polite)] == before
    assert not hasattr(Late.__call__, "__wrapped__")


def test_classes_are_defined_as_usual_inside_a_window() -> None:
    class Registered(nn.Module):
        names: ClassVar[list[str]] = []

        def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.names.append(key)

    before = dict(vars(nn.Module))
    with watching() as g:

        class Typed(Registered, Generic[T], key="typed"):
            """Has two bases that define `__init_subclass__`."""

        with pytest.raises(TypeError, match="takes no keyword arguments"):

            class _Wrong(nn.Module, key="wrong"):  # type: ignore[call-arg]
                pass

    assert Registered.names == ["typed"]
    assert Typed.__parameters__ == (T,)  # type: ignore[attr-defined]
    assert dict(vars(nn.Module)) == before
    assert g.violations == []


def test_an_init_subclass_that_other_code_set_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    defined: list[type] = []
    monkeypatch.setattr(nn.Module, "__init_subclass__", classmethod(defined.append), raising=False)
    with watching():
        late = type("Late", (nn.Module,), {})
    assert defined == [late]
    assert vars(nn.Module)["__init_subclass__"].__func__ == defined.append


def test_a_call_assigned_before_the_window_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Diffuser, x: Tensor) -> Tensor:
        return torch.rand_like(x)

    with watching():
        Diffuser()
    monkeypatch.setattr(Diffuser, "__call__", call)
    with watching() as g:
        Diffuser().eval()(batch())
    assert rules(g) == {"random-forward"}


def test_nested_windows_share_the_wrapper() -> None:
    with watching() as outer:
        with watching() as inner:
            Diffuser(gated=False).eval()(batch())
        assert hasattr(Diffuser.__call__, "__wrapped__")
    assert rules(inner) == rules(outer) == {"random-forward"}


def test_a_call_that_the_test_assigns_is_not_overwritten() -> None:
    def call(self: nn.Module, x: Tensor) -> Tensor:
        return x

    class Patched(Diffuser):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    with watching():
        Patched()
        Patched.__call__ = call  # type: ignore[method-assign]
    assert Patched.__call__ is call


def test_a_class_defined_inside_the_window_can_be_freed() -> None:
    with watching():

        class Late(nn.Module):
            pass

        Late()
        class_ref = weakref.ref(Late)
        del Late
        gc.collect()
        assert class_ref() is None


class Mixin:
    """Is no module, and has a `__call__` of its own that other classes use too."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Mixed(Mixin, nn.Module):
    """Inherits the `__call__` of the mixin."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Linear(4, 4)


class MixedAgain(Mixed, nn.Module):
    """Inherits it from a class of modules."""


@pytest.mark.parametrize("kind", [Mixed, MixedAgain])
def test_a_call_that_is_inherited_from_a_mixin_is_observed(kind: type[nn.Module]) -> None:
    before = Mixin.__call__
    with watching() as g:
        assert Mixin.__call__ is before
        kind().eval()(batch())
        Mixin()(batch())  # the look-alike
    assert only(g, "random-forward").subjects == (f"{kind.__name__} ({kind.__name__})",)
    assert [model.forwards for model in g.window.models] == [1]
    assert "__call__" not in {**vars(Mixed), **vars(MixedAgain)}


def test_a_class_of_the_standard_library_stays_as_it_is() -> None:
    class Annotated(nn.Module, collections.abc.Callable):  # type: ignore[type-arg, misc]
        def __call__(self, x: Tensor) -> Tensor:
            y: Tensor = super().__call__(x)
            return y

        def forward(self, x: Tensor) -> Tensor:
            return x

    before = vars(collections.abc.Callable)["__call__"]
    with watching() as g:
        Annotated().eval()(batch())
        assert vars(collections.abc.Callable)["__call__"] is before
    assert vars(collections.abc.Callable)["__call__"] is before
    assert g.violations == []


class Frozen(type):
    """A metaclass whose classes refuse attributes."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError("immutable class")


def test_a_class_that_refuses_attributes_is_skipped() -> None:
    class Fixed(nn.Module, metaclass=Frozen):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    with watching() as g:
        Fixed().eval()(batch())
        Diffuser()(batch())
    assert rules(g) == {"train-mode"}


def test_a_class_that_starts_to_refuse_attributes_leaves_no_other_wrapper() -> None:
    class Switch(type):
        frozen = False

        def __setattr__(cls, name: str, value: object) -> None:
            if Switch.frozen:
                raise TypeError("immutable class")
            super().__setattr__(name, value)

    class First(nn.Module, metaclass=Switch):
        def __call__(self, x: Tensor) -> Tensor:
            return x

    with suppress(GuardError), guard() as g:
        First().eval()(batch())
        Switch.frozen = True
    Switch.frozen = False
    with pytest.raises(GuardError, match="immutable class"):
        g.check()
    assert not hasattr(Diffuser.__call__, "__wrapped__")
    assert not hasattr(nn.Module.__call__, "__wrapped__")
    with watching() as g:
        First().eval()(batch())
    assert g.violations == []


def test_a_static_call_stays_as_it_is() -> None:
    class Static(nn.Module):
        @staticmethod
        def __call__(x: Tensor) -> Tensor:
            return x

    with watching() as g:
        assert isinstance(vars(Static)["__call__"], staticmethod)
        Static().eval()(batch())
    assert g.violations == []
