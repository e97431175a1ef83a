"""The model that runs a module in one of its own methods."""

from __future__ import annotations

import gc
import io
import pdb
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import TestCase

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import Violation
from tests.nets import batch, rules, watching


class Mixin:
    """Methods for models, in a class that is not a module."""

    net: nn.Module

    def infer(self, x: Tensor) -> Any:
        return self.net(x)


class Coder(nn.Module, Mixin):
    """A model that is also run through other methods than its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.drop = nn.Dropout()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Any:
        return self.drop(self.net(x))

    def decode(self, x: Tensor) -> Any:
        return sum([block(x) for block in self.blocks])

    def encode_twice(self, x: Tensor) -> Any:
        return self.encode(self.encode(x))


def violations_of(run: Callable[[Coder], object], **arguments: Any) -> dict[str, Violation]:
    """Return the violations of a run of a model in training mode, by rule."""
    with watching(**arguments) as g:
        run(Coder())
    return {violation.rule: violation for violation in g.violations}


WAYS: dict[str, tuple[Callable[[Coder], object], int]] = {
    "__call__": (lambda model: model(batch()), 1),
    "forward": (lambda model: model.forward(batch()), 1),
    "a method": (lambda model: model.encode(batch()), 1),
    "a method twice": (lambda model: [model.encode(batch()) for _ in range(2)], 2),
    "a method that calls another": (lambda model: model.encode_twice(batch()), 2),
    "a comprehension in a method": (lambda model: model.decode(batch()), 1),
    "a method of a mixin": (lambda model: model.infer(batch()), 1),
}


@pytest.mark.parametrize(("run", "times"), WAYS.values(), ids=WAYS)
def test_the_model_is_reported_not_its_submodules(run: Callable[[Coder], object], times: int) -> None:
    violations = violations_of(run)
    assert set(violations) == {"train-mode", "grad-mode"}
    for violation in violations.values():
        assert violation.model == "Coder"
        assert violation.count == times
        assert violation.message.startswith(f"Coder ran {'once' if times == 1 else '2 times'}")
        assert violation.at is not None
        assert "lambda model" in violation.at.source
    remedies = [f"call {module}.eval() before the first forward" for module in ("model", "model.net")]
    assert violations["train-mode"].remedy in remedies


def test_the_cause_is_the_line_in_the_method_that_called_the_submodule() -> None:
    cause = violations_of(lambda model: model.encode(batch()))["train-mode"].cause
    assert cause is not None
    assert cause.source == "return self.drop(self.net(x))"


def test_the_fix_for_a_model_in_an_assert_is_python() -> None:
    """Pytest rewrites an `assert` so that hidden variables hold its intermediate values."""
    holder = SimpleNamespace(model=Coder())
    with watching() as g, torch.no_grad():
        assert holder.model(batch()) is not None
    (violation,) = g.violations
    assert violation.remedy == "call holder.model.eval() before the first forward"


def test_submodules_that_the_test_calls_are_reported_as_submodules() -> None:
    model = Coder()
    with watching(model) as g, torch.no_grad():
        model.net(batch())
        model.blocks[0](batch())
    (violation,) = g.violations
    assert violation.message == "Coder.net (Linear) and 1 more ran 2 times in training mode"
    assert violation.remedy == "call model.eval() before the first forward"


def test_a_class_defined_in_a_function_is_recognized() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)

        def encode(self, x: Tensor) -> Any:
            return self.net(x)

    with watching() as g, torch.no_grad():
        Local().encode(batch())
    (violation,) = g.violations
    assert violation.model == "Local"


class RunsModel(TestCase):
    """A class that is not a module: the locals of its methods are not read."""

    def run_it(self) -> None:
        model = nn.Linear(4, 4).eval()
        reference = weakref.ref(model)
        with torch.no_grad():
            model(batch())
        del model
        gc.collect()
        assert reference() is None


def test_frames_of_other_classes_are_not_read() -> None:
    with watching() as g:
        RunsModel().run_it()
    assert rules(g) == set()


class WidthFirst(nn.Module):
    """Runs its backbone before its own `Module.__init__`, to infer a width."""

    def __init__(self, backbone: nn.Module) -> None:
        width = backbone(batch()).shape[1]
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 2)


class Built(nn.Module):
    """Runs a submodule in its own `__init__`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4).eval()
        self.head = nn.Linear(self.width(), 2)

    def width(self) -> int:
        width: int = self.stem(batch()).shape[1]
        return width

    def forward(self, x: Tensor) -> Any:
        return self.head(self.stem(x))


class Distance(nn.Module):
    """A metric that contains a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def update(self, x: Tensor) -> None:
        self.net(x)
        self.get_buffer("seen").add_(1)

    def compute(self) -> None: ...

    def reset(self) -> None: ...


NO_CALLING_MODEL: dict[str, Callable[[], object]] = {
    "before Module.__init__": lambda: WidthFirst(nn.Linear(4, 4).eval()),
    "in __init__": lambda: Built().eval()(batch()),
    "a metric": lambda: Distance().eval().update(batch()),
}


@pytest.mark.parametrize("run", NO_CALLING_MODEL.values(), ids=NO_CALLING_MODEL)
@torch.no_grad()
def test_a_model_in_its_init_and_a_metric_are_not_calling_models(run: Callable[[], object]) -> None:
    with watching() as g:
        run()
    assert rules(g) == set()


@torch.no_grad()
def test_changes_of_the_model_are_found_after_a_submodule_ran_alone() -> None:
    class Counting(Coder):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def encode(self, x: Tensor) -> Any:
            self.get_buffer("calls").add_(1)
            return super().encode(x)

    model = Counting().eval()
    with watching() as g:
        model.net(batch())
        model.encode(batch())
        model.encode(batch())
    (violation,) = g.violations
    assert violation.subjects == ("Counting.calls",)


class DeletesLayer(nn.Module):
    """Deletes a layer in a method, and checks that it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def work(self, x: Tensor) -> bool:
        layer = nn.Linear(4, 4)
        reference = weakref.ref(layer)
        self.net(x)
        del layer
        gc.collect()
        return reference() is None


@torch.no_grad()
def test_reading_the_locals_of_a_method_keeps_nothing_alive() -> None:
    with watching() as g:
        assert DeletesLayer().eval().work(batch())
    assert rules(g) == set()


class StopsInDebugger(nn.Module):
    """Starts a debugger in a method that runs a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def work(self, x: Tensor, stop: Callable[[], object]) -> int:
        scale = 1
        self.within(stop)
        self.net(x)
        return scale

    def within(self, stop: Callable[[], object]) -> None:
        stop()
        self.net.eval()


@pytest.mark.parametrize("where", ["return\nnext\n", "up\n"])
@torch.no_grad()
def test_assignments_in_a_debugger_are_kept(where: str) -> None:
    commands = f"{where}!scale = 5\np self.net(x).shape\np scale\ncontinue\n"
    out = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO(commands), stdout=out, nosigint=True, readrc=False)
    with watching() as g:
        scale = StopsInDebugger().eval().work(batch(), debugger.set_trace)
    assert "torch.Size([8, 4])" in out.getvalue()
    assert "(Pdb) 5\n" in out.getvalue()
    assert rules(g) == set()
    # Before Python 3.13 an assignment in a debugger is kept only in the innermost frame.
    if where != "up\n" or sys.version_info >= (3, 13):
        assert scale == 5
