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
from tests.nets import rules, watching


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
        self.sizes = (3, 3)
        self.unset: list[Any] = [None, 2]
        self.hidden = (torch.zeros(3), {"c": torch.zeros(3)})
        self.looped: list[Any] = []
        self.looped.append(self.looped)
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
    "an item of a list": (lambda module: module.items.__setitem__(0, 2), ("items[0]", "1", "2")),
    "a longer list": (lambda module: module.items.append(2), ("items[1]", "(absent)", "2")),
    "a shorter list": (setting("items", []), ("items[0]", "1", "(absent)")),
    "another tuple": (setting("sizes", (3, 4)), ("sizes[1]", "3", "4")),
    "a value of a dict": (lambda module: module.by_name.update(a=2), ("by_name['a']", "1", "2")),
    "a key that is gone": (lambda module: module.by_name.clear(), ("by_name['a']", "1", "(absent)")),
    "a tensor in a tuple": (
        lambda module: module.hidden[1]["c"].add_(1),
        ("hidden[1]['c']", "tensor of shape (3,)", "tensor of shape (3,) with different values"),
    ),
    "a tuple of other tensors": (
        setting("hidden", (torch.zeros(2), {"c": torch.zeros(3)})),
        ("hidden[0]", "tensor of shape (3,)", "tensor of shape (2,)"),
    ),
    "a list to a number": (setting("items", 5), ("items", "list of 1", "5")),
    "a number to a list": (setting("number", [1]), ("number", "1", "list of 1")),
    "a tuple to None": (setting("sizes", None), ("sizes", "tuple of 2", "None")),
}
SAME: dict[str, Callable[[Module], object]] = {
    "nothing": lambda module: None,
    "an equal number": setting("number", 1),
    "an equal string": setting("text", "".join(["a"])),
    "NaN": setting("nan", float("nan")),
    "an equal tensor": setting("tensor", torch.zeros(3)),
    "a tensor written with its own values": lambda module: module.tensor.zero_(),
    "changed and restored": lambda module: [setattr(module, "number", n) for n in (2, 1)],  # type: ignore[func-returns-value]
    "from None": setting("nothing", 3),
    "None to tensor": setting("nothing", torch.ones(1)),
    "an equal list": setting("items", [1]),
    "an equal tuple": setting("sizes", (3, 3)),
    "equal tensors": setting("hidden", (torch.zeros(3), {"c": torch.zeros(3)})),
    "a new key": lambda module: module.by_name.update(b=2),
    "None in a list": lambda module: module.unset.__setitem__(0, 1),
    "a list that contains itself": lambda module: module.looped[0] is module.looped,
    "an object for a list": setting("items", object()),
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
    setattr(module, "old", 1)  # noqa: B010
    before = attribute_changes.read_attributes([module])
    del module.old
    setattr(module, "new", 1)  # noqa: B010
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


@torch.no_grad()
def test_the_list_of_its_weights_that_a_recurrent_layer_keeps_is_ignored() -> None:
    """It is made anew once a weight was replaced."""
    model = nn.Sequential(nn.LSTM(4, 4), nn.Identity()).eval()
    weights = {name: parameter + 1 for name, parameter in model.named_parameters()}
    with watching(strict=True) as g:
        torch.func.functional_call(model, weights, (torch.ones(2, 3, 4),))
        model(torch.ones(2, 3, 4))
    assert g.violations == []


# --- state that one forward stores and the next reads


class Recurrent(nn.Module):
    """Keeps its hidden state from forward to forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.hidden = nn.LSTM(4, 4), (torch.zeros(1, 4), torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, self.hidden = self.lstm(x, self.hidden)
        out: torch.Tensor = y
        return out


class Scaler(nn.Module):
    """Scales by the statistics of a batch, which it stores, and back (RevIN)."""

    mean: torch.Tensor

    def forward(self, x: torch.Tensor, mode: str) -> torch.Tensor:
        if mode == "norm":
            self.mean = x.mean(0).detach()
            return x - self.mean
        return x + self.mean


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaler, self.layer = Scaler(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.scaler(self.layer(self.scaler(x, "norm")), "denorm")
        return y

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.scaler(self.layer(self.scaler(x, "norm")), "denorm")
        return y


class Maps(nn.Module):
    """Keeps its attention for a plot, a loss and the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.attention, self.loss, self.size = nn.Linear(4, 4), torch.zeros(1), 0.0, 0
        self.all: dict[str, torch.Tensor] = {"first": torch.zeros(1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        self.attention, self.loss, self.size = y, float(y.mean()), len(x)
        self.all["first"] = y
        return y


class Cached(nn.Module):
    """Computes once what every later forward uses."""

    def __init__(self, *, pair: bool = False) -> None:
        super().__init__()
        self.layer, self.pair = nn.Linear(4, 4), pair
        self.cache: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cache is None:
            self.cache = (x.mean(), x.std()) if self.pair else x.mean()
        y: torch.Tensor = self.layer(x)
        return y


class Centers(nn.Module):
    """Stores the mean of a batch, but not that of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mean = nn.Linear(4, 4), torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            self.mean = x.mean(0)
        y: torch.Tensor = self.layer(x - self.mean)
        return y


class Membrane(nn.Module):
    """A spiking neuron without parameters, whose potential is a buffer that is not saved."""

    potential: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("potential", torch.zeros(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.potential = 0.9 * self.potential + x.mean(0)
        spikes: torch.Tensor = self.potential > 1
        return spikes


class Steps(nn.Module):
    """A transform without parameters that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x / self.count


def run_twice(model: Any, method: str = "__call__", sizes: tuple[int, ...] = (3, 5)) -> set[str]:
    model.eval()
    with watching(model, strict=True) as g, torch.no_grad():
        for size in sizes:
            getattr(model, method)(torch.randn(size, 4))
    return rules(g)


FRESH: dict[str, Callable[[], set[str]]] = {
    "statistics": lambda: run_twice(Forecast()),
    "statistics, in a method": lambda: run_twice(Forecast(), "predict"),
    "maps": lambda: run_twice(Maps()),
    "a cache": lambda: run_twice(Cached()),
    "a cache of two": lambda: run_twice(Cached(pair=True)),
    "statistics of every batch": lambda: run_twice(Centers()),
}
STATE: dict[str, tuple[Callable[[], set[str]], str]] = {
    "hidden state": (lambda: run_twice(Recurrent()), "attribute-mutated"),
    "hidden state beside others": (lambda: run_twice(nn.Sequential(nn.Linear(4, 4), Recurrent())), "attribute-mutated"),
    "statistics of another batch": (lambda: run_twice(Centers(), sizes=(3, 1)), "attribute-mutated"),
    "membrane": (lambda: run_twice(Membrane()), "buffer-mutated"),
    "membrane beside a layer": (lambda: run_twice(nn.Sequential(nn.Linear(4, 4), Membrane())), "buffer-mutated"),
    "steps": (lambda: run_twice(Steps()), "attribute-mutated"),
    "steps beside a layer": (lambda: run_twice(nn.Sequential(nn.Linear(4, 4), Steps())), "attribute-mutated"),
}


@pytest.mark.parametrize("run", FRESH.values(), ids=FRESH)
def test_what_every_forward_writes_first_is_clean(run: Callable[[], set[str]]) -> None:
    assert run() == set()


@pytest.mark.parametrize(("run", "rule"), STATE.values(), ids=STATE)
def test_state_that_the_next_forward_reads_is_reported(run: Callable[[], set[str]], rule: str) -> None:
    assert run() == {rule}


def test_a_module_that_runs_without_being_handed_over_is_checked() -> None:
    with watching(strict=True) as g, torch.no_grad():
        Steps().eval()(torch.ones(2, 4))
    assert rules(g) == {"attribute-mutated"}
