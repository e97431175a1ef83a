"""Plain attributes: which are compared, and which differences count as a change."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pytest_evalmode.observe.forwards.checks import attribute_changes
from pytest_evalmode.trace import ModuleInfo


class Color(enum.IntEnum):
    RED = 1
    BLUE = 2


class Module(nn.Module):
    """Has one attribute of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 1
        self.ratio = 0.5
        self.text = "a"
        self.flag = False
        self.nothing: Any = None
        self.color = Color.RED
        self.nan = float("nan")
        self.tensor = torch.zeros(3)
        self.items = [1]
        self.by_name = {"a": 1}
        self.opaque = object()


def change(act: Callable[[Module], object]) -> list[tuple[str, str, str]]:
    """Return the attributes that a function changed, each with its description before and after."""
    module = Module()
    before = attribute_changes.read_attributes([module])
    act(module)
    changes = attribute_changes.find_changes(before, lambda part: ModuleInfo("model", "", type(part).__name__))
    return [(c.attribute, c.before, c.after) for c in changes]


def setting(name: str, value: object) -> Callable[[Module], object]:
    return lambda module: setattr(module, name, value)


CHANGES: dict[str, tuple[Callable[[Module], object], tuple[str, str, str]]] = {
    "number": (setting("number", 2), ("number", "1", "2")),
    "float": (setting("ratio", 0.25), ("ratio", "0.5", "0.25")),
    "to NaN": (setting("ratio", float("nan")), ("ratio", "0.5", "nan")),
    "string": (setting("text", "b"), ("text", "'a'", "'b'")),
    "bool": (setting("flag", True), ("flag", "False", "True")),
    "from None": (setting("nothing", 3), ("nothing", "None", "3")),
    "a long string": (setting("text", "b" * 500), ("text", "'a'", "'" + "b" * 119 + "...")),
    "to None": (setting("text", None), ("text", "'a'", "None")),
    "another type": (setting("number", 1.0), ("number", "1", "1.0")),
    "another member of an enum": (setting("color", Color.BLUE), ("color", repr(Color.RED), repr(Color.BLUE))),
    "gone": (lambda module: delattr(module, "number"), ("number", "1", "(absent)")),
    "tensor in place": (
        lambda module: module.tensor.add_(1),
        ("tensor", "tensor of shape (3,)", "tensor of shape (3,) with different values"),
    ),
    "tensor replaced": (setting("tensor", torch.ones(2)), ("tensor", "tensor of shape (3,)", "tensor of shape (2,)")),
    "tensor of another dtype": (
        setting("tensor", torch.zeros(3).double()),
        ("tensor", "tensor of shape (3,)", "tensor of shape (3,) with different values"),
    ),
    "tensor to None": (setting("tensor", None), ("tensor", "tensor of shape (3,)", "None")),
    "None to tensor": (setting("nothing", torch.ones(1)), ("nothing", "None", "tensor of shape (1,)")),
}
SAME: dict[str, Callable[[Module], object]] = {
    "nothing": lambda module: None,
    "an equal number": setting("number", 1),
    "an equal string": setting("text", "".join(["a"])),
    "NaN": setting("nan", float("nan")),
    "an equal tensor": setting("tensor", torch.zeros(3)),
    "a tensor written with its own values": lambda module: module.tensor.zero_(),
    "changed and restored": lambda module: [setattr(module, "number", n) for n in (2, 1)],  # type: ignore[func-returns-value]
    "a list": lambda module: module.items.append(2),
    "another list": setting("items", []),
    "a dict": lambda module: module.by_name.update(b=2),
    "another object": setting("opaque", object()),
    "an object for None": setting("nothing", [1]),
    "an array": setting("opaque", np.zeros(3)),
    "new": setting("fresh", 1),
    "a new tensor": setting("fresh", torch.ones(1)),
    "a new list": setting("fresh", [1]),
    "the mode": lambda module: module.train(not module.training),
    "a hook": lambda module: module.register_forward_hook(lambda *_: None),
    "a buffer": lambda module: module.register_buffer("buffer", torch.ones(1)),
    "a submodule": lambda module: module.add_module("inner", nn.Linear(1, 1)),
}


@pytest.mark.parametrize(("act", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_reported(act: Callable[[Module], object], expected: tuple[str, str, str]) -> None:
    assert change(act) == [expected]


@pytest.mark.parametrize("act", SAME.values(), ids=SAME)
def test_no_change_is_reported(act: Callable[[Module], object]) -> None:
    assert change(act) == []


def test_a_removed_attribute_is_reported_if_another_gets_its_value() -> None:
    module = nn.Module()
    setattr(module, "old", None)  # noqa: B010
    before = attribute_changes.read_attributes([module])
    del module.old
    setattr(module, "new", None)  # noqa: B010
    changes = attribute_changes.find_changes(before, lambda part: ModuleInfo("model", "", "Module"))
    assert [c.name for c in changes] == ["model.old"]


def test_tensors_are_reported_before_numbers() -> None:
    def act(module: Module) -> None:
        module.number = 2
        module.tensor.add_(1)

    assert [name for name, _, _ in change(act)] == ["tensor", "number"]


def test_the_name_includes_the_path_of_the_module() -> None:
    parts = [Module(), Module()]
    before = attribute_changes.read_attributes([*parts])
    parts[1].number = 7
    changes = attribute_changes.find_changes(
        before,
        lambda part: ModuleInfo("model", f"layers.{parts.index(part)}", "Module"),  # type: ignore[arg-type]
    )
    assert [c.name for c in changes] == ["model.layers.1.number"]


class Wrapper(nn.Module):
    """A wrapper defined by the user, unlike those of torch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.dim = 0


@pytest.mark.parametrize(
    ("wrap", "expected"), [(nn.DataParallel, []), (Wrapper, ["dim"])], ids=["torch's", "the user's"]
)
def test_attributes_of_torch_wrappers_are_ignored(wrap: Callable[[nn.Module], nn.Module], expected: list[str]) -> None:
    wrapper = wrap(Module())
    before = attribute_changes.read_attributes([wrapper])
    vars(wrapper)["dim"] = 1
    changes = attribute_changes.find_changes(before, lambda part: ModuleInfo("model", "", ""))
    assert [c.attribute for c in changes] == expected


NORMED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("norm", NORMED.values(), ids=NORMED)
@torch.no_grad()
def test_a_weight_that_torch_computes_before_each_forward_is_ignored(norm: Callable[[nn.Module], nn.Module]) -> None:
    layer = norm(nn.Linear(4, 4)).eval()
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "calls", 1))
    vars(layer)["calls"] = 0
    vars(layer)["weight"] = torch.zeros(4, 4)
    before = attribute_changes.read_attributes([layer])
    layer(torch.ones(1, 4))
    assert [c.attribute for c in attribute_changes.find_changes(before, lambda part: ModuleInfo("model", "", ""))] == [
        "calls"
    ]
