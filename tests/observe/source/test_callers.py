"""The model that runs a module by a method of its own, and how that is told."""

from __future__ import annotations

import gc
import io
import pdb
import sys
import weakref
from collections.abc import Callable
from typing import Any
from unittest import TestCase

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import Violation
from tests.nets import batch, rules, watching


class Mixin:
    """Methods for models, in a class that is none."""

    net: nn.Module

    def infer(self, x: Tensor) -> Any:
        return self.net(x)


class Coder(nn.Module, Mixin):
    """A model that is run by more than its forward."""

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


def found(run: Callable[[Coder], object], **arguments: Any) -> dict[str, Violation]:
    """What a run of a model in training mode broke, by rule."""
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
def test_the_model_is_told_not_its_parts(run: Callable[[Coder], object], times: int) -> None:
    violations = found(run)
    assert set(violations) == {"train-mode", "grad-mode"}
    for violation in violations.values():
        assert violation.model == "Coder"
        assert violation.count == times
        assert violation.message.startswith(f"Coder ran {'once' if times == 1 else '2 times'}")
        assert violation.at is not None
        assert "lambda model" in violation.at.source
    assert violations["train-mode"].remedy == "call model.eval() before the first forward"


def test_the_line_in_the_method_that_called_the_part() -> None:
    cause = found(lambda model: model.encode(batch()))["train-mode"].cause
    assert cause is not None
    assert cause.source == "return self.drop(self.net(x))"


def test_parts_that_the_test_calls_are_told_as_parts() -> None:
    model = Coder()
    with watching(model) as g, torch.no_grad():
        model.net(batch())
        model.blocks[0](batch())
    (violation,) = g.violations
    assert violation.message == "Coder.net (Linear) and 1 more ran 2 times in training mode"
    assert violation.remedy == "call model.eval() before the first forward"


def test_a_class_of_a_function() -> None:
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


class Runs(TestCase):
    """A class with methods that is no module: what it holds is not asked."""

    def run_it(self) -> None:
        model = nn.Linear(4, 4).eval()
        freed = weakref.ref(model)
        with torch.no_grad():
            model(batch())
        del model
        gc.collect()
        assert freed() is None


def test_other_frames_keep_nothing() -> None:
    with watching() as g:
        Runs().run_it()
    assert rules(g) == set()


class WidthFirst(nn.Module):
    """Asks how wide its backbone is before it is a module itself."""

    def __init__(self, backbone: nn.Module) -> None:
        width = backbone(batch()).shape[1]
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 2)


class Built(nn.Module):
    """Runs a part of itself while it is built."""

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
    """A metric that holds a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def update(self, x: Tensor) -> None:
        self.net(x)
        self.get_buffer("seen").add_(1)

    def compute(self) -> None: ...

    def reset(self) -> None: ...


NO_OWNER: dict[str, Callable[[], object]] = {
    "not yet a module": lambda: WidthFirst(nn.Linear(4, 4).eval()),
    "built": lambda: Built().eval()(batch()),
    "a metric": lambda: Distance().eval().update(batch()),
}


@pytest.mark.parametrize("run", NO_OWNER.values(), ids=NO_OWNER)
@torch.no_grad()
def test_what_is_built_and_what_counts_owns_nothing(run: Callable[[], object]) -> None:
    with watching() as g:
        run()
    assert rules(g) == set()


@torch.no_grad()
def test_a_part_that_ran_first_hides_nothing_of_the_model() -> None:
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


class Drops(nn.Module):
    """Lets go of a layer in a method, and looks whether it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    def work(self, x: Tensor) -> bool:
        layer = nn.Linear(4, 4)
        freed = weakref.ref(layer)
        self.net(x)
        del layer
        gc.collect()
        return freed() is None


@torch.no_grad()
def test_a_method_that_is_looked_at_keeps_nothing() -> None:
    with watching() as g:
        assert Drops().eval().work(batch())
    assert rules(g) == set()


class Scales(nn.Module):
    """Stops in a method that runs a part of it."""

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
def test_what_a_debugger_sets_stays_set(where: str) -> None:
    commands = f"{where}!scale = 5\np self.net(x).shape\np scale\ncontinue\n"
    out = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO(commands), stdout=out, nosigint=True, readrc=False)
    with watching() as g:
        scale = Scales().eval().work(batch(), debugger.set_trace)
    assert "torch.Size([8, 4])" in out.getvalue()
    assert "(Pdb) 5\n" in out.getvalue()
    assert rules(g) == set()
    if where != "up\n" or sys.version_info >= (
        3,
        13,
    ):  # before, a debugger keeps what it sets in the frame it is in alone
        assert scale == 5
