from __future__ import annotations

import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models import discovery, mode_dependence
from tests.nets import Net, batch


def find_paths(value: object, name: str = "fx") -> list[str]:
    return [path for path, _ in discovery.find_models(value, name)]


# --- models inside a fixture's value


@dataclass
class Bundle:
    model: nn.Module
    labels: tuple[str, ...] = ("cat",)


@dataclass(slots=True)
class Compact:
    model: nn.Module


class Slotted:
    __slots__ = ("model", "unset")

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class OneSlot:
    __slots__ = "model"

    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Below(Slotted):
    """Has a base class with slots, and a `__dict__`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.other = model


class Predictor:
    def __init__(self, model: nn.Module) -> None:
        self._model = model


class Fussy(Predictor):
    """Raises for every attribute and comparison."""

    @property
    def device(self) -> str:
        raise RuntimeError("not started")

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


class Jealous(Predictor):
    """Raises for every attribute, and has the wrong `__class__`."""

    def __getattribute__(self, name: str) -> object:
        if name == "__class__":
            return Jealous
        raise AssertionError(name)


class Loud(dict[str, object]):
    def items(self) -> Any:
        raise AssertionError

    def __getitem__(self, key: str) -> object:
        raise AssertionError


Pair = namedtuple("Pair", "model labels")

HOLDERS: dict[str, tuple[Callable[[nn.Module], object], list[str]]] = {
    "itself": (lambda m: m, ["fx"]),
    "dict": (lambda m: {"model": m, 3: "three"}, ["fx['model']"]),
    "dict by number": (lambda m: {7: m}, ["fx[7]"]),
    "ordered dict": (lambda m: OrderedDict(model=m), ["fx['model']"]),
    "list": (lambda m: [None, m], ["fx[1]"]),
    "tuple": (lambda m: (m, 1), ["fx[0]"]),
    "namedtuple": (lambda m: Pair(m, ["cat"]), ["fx.model"]),
    "dataclass": (Bundle, ["fx.model"]),
    "dataclass with slots": (Compact, ["fx.model"]),
    "slots": (Slotted, ["fx.model"]),
    "one slot": (OneSlot, ["fx.model"]),
    "slots below": (Below, ["fx.other"]),
    "namespace": (lambda m: SimpleNamespace(nets=SimpleNamespace(m=m)), ["fx.nets.m"]),
    "plain object": (Predictor, ["fx._model"]),
    "attributes that raise": (Fussy, ["fx._model"]),
    "attributes that lie": (Jealous, ["fx._model"]),
    "items that raise": (lambda m: Loud(model=m), ["fx['model']"]),
    "nested": (lambda m: {"a": [Bundle(m)]}, ["fx['a'][0].model"]),
    "two": (lambda m: [m, Net()], ["fx[0]", "fx[1]"]),
    "the same twice": (lambda m: {"a": m, "b": m}, ["fx['a']"]),
    "the nearest name": (lambda m: {"deep": [[m]], "near": m}, ["fx['near']"]),
    "parts of a model": (lambda m: [m, m.get_submodule("head")], ["fx[0]", "fx[1]"]),
}
STRANGERS: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda m: None,
    "text": lambda m: "model",
    "a tensor": lambda m: torch.ones(3),
    "the class": type,
    "the module of it": lambda m: nn,
    "a function": lambda m: lambda: m,
    "a method": lambda m: m.forward,
    "an iterator": lambda m: iter([m]),
    "a set": lambda m: {1, 2},
    "a mock": lambda m: mock.MagicMock(),
    "too deep": lambda m: [[[[[m]]]]],
    "behind too many values": lambda m: [*([0] * 100_000), m],
}


@pytest.mark.parametrize(("hold", "paths"), HOLDERS.values(), ids=HOLDERS)
def test_a_model_in_a_fixture_value_is_found_and_named(hold: Callable[[nn.Module], object], paths: list[str]) -> None:
    assert find_paths(hold(Net())) == paths


@pytest.mark.parametrize("hold", STRANGERS.values(), ids=STRANGERS)
def test_these_values_contain_no_model(hold: Callable[[nn.Module], object]) -> None:
    assert find_paths(hold(Net())) == []


def test_cycles_end() -> None:
    items: list[object] = [Net()]
    items.append(items)
    this = SimpleNamespace(items=items)
    this.me = this
    assert find_paths(this) == ["fx.items[0]"]


def test_the_search_calls_no_property() -> None:
    class Watched(Predictor):
        @property
        def model(self) -> nn.Module:
            raise AssertionError

    holder = Watched(Net())
    before = dict(vars(holder))
    assert find_paths(holder) == ["fx._model"]
    assert vars(holder) == before


def test_the_search_calls_no_property_of_a_dataclass() -> None:
    @dataclass
    class Lazy:
        model: nn.Module
        size: int = 0

    def fail(_: object) -> NoReturn:
        raise AssertionError

    holder = Lazy(Net())
    Lazy.size = property(fail)  # type: ignore[assignment]
    assert find_paths(holder) == ["fx.model"]


def test_a_key_whose_repr_raises_hides_nothing() -> None:
    class Key:
        def __repr__(self) -> str:
            raise ValueError

    assert find_paths({Key(): Net(), 1: Net()}) == ["fx[<Key>]", "fx[1]"]


def test_a_proxy_whose_object_is_gone_hides_nothing() -> None:
    class Service:
        pass

    gone = weakref.proxy(Service())
    with pytest.raises(ReferenceError):
        isinstance(gone, nn.Module)
    assert find_paths([gone, Net()]) == ["fx[1]"]


def test_mapping_proxies_and_other_builtins_do_no_harm() -> None:
    assert find_paths(MappingProxyType({"model": Net()})) in ([], ["fx['model']"])


# --- names


def averaged(model: nn.Module) -> nn.Module:
    return AveragedModel(model)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "both": lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_without_tensors_is_left_out(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = Net()
    wrapped = wrap(net)
    assert modules.unwrap(wrapped) is net
    assert modules.type_name(wrapped) == "Net"
    assert [path for path, _ in modules.walk(wrapped) if path] == ["body", "bn", "drop", "head"]


def test_averaged_model_has_a_counter_and_is_a_model_of_its_own() -> None:
    model = AveragedModel(Net())
    assert modules.unwrap(model) is model
    assert modules.type_name(model) == "AveragedModel"
    assert [path for path, _ in modules.walk(model)][:3] == ["", "module", "module.body"]


def test_a_wrapped_submodule_keeps_its_path() -> None:
    model = nn.Sequential(WRAPPERS["torch.compile"](Net()), nn.ReLU())
    assert list(dict(modules.walk(model))) == ["", "0", "0.body", "0.bn", "0.drop", "0.head", "1"]


class Holder(nn.Module):
    """Has one submodule, named `module`, and also a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))


def test_a_submodule_may_be_named_module() -> None:
    assert modules.unwrap(Holder()).__class__ is Holder
    assert [path for path, _ in modules.walk(Holder())] == ["", "module"]


def test_type_names() -> None:
    assert modules.type_name(torch.jit.script(Net())) == "Net"
    assert modules.type_name(torch.export.export(Net().eval(), (batch(),)).module()) == "GraphModule"
    assert modules.type_name(torch.fx.symbolic_trace(Net())) == "GraphModule"
    assert modules.type_name(nn.Sequential()) == "Sequential"
    assert modules.type_name(nn.LazyLinear(2)) == "LazyLinear"
    assert modules.type_name(parametrizations.weight_norm(nn.Linear(2, 2))) == "Linear"
    assert modules.type_name(parametrizations.spectral_norm(Holder(), "scale")) == "Holder"


def test_all_modules_and_walk_match_torch() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ModuleList([shared, Net()]), nn.ModuleDict({"a": nn.ReLU()}))
    model.register_module("gone", None)
    assert set(modules.all_modules(model)) == set(model.modules())
    assert dict(modules.walk(model)) == dict(model.named_modules())


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        (lambda m: {"block": m}, "block"),
        (lambda m: {"blocks": [nn.ReLU(), m]}, "blocks[1]"),
        (lambda m: {"blocks": (m,)}, "blocks[0]"),
        (lambda m: {"blocks": {"deep": m}}, "blocks['deep']"),
        (lambda m: {"blocks": {"deep": [nn.ReLU(), m]}}, "blocks['deep'][1]"),
        (lambda m: {"attribute": SimpleNamespace(inner=m)}, "attribute.inner"),
        (lambda m: {"blocks": [nn.ReLU()]}, None),
        (lambda m: {}, None),
    ],
)
def test_the_attribute_of_an_unregistered_module(
    keep: Callable[[nn.Module], dict[str, object]], name: str | None
) -> None:
    owner, part = nn.Module(), nn.Dropout()
    vars(owner).update(keep(part))
    assert discovery.attribute_of(owner, part) == name


def test_a_registered_submodule_has_no_other_attribute() -> None:
    net = Net()
    assert discovery.attribute_of(net, net.bn) is None


@pytest.mark.parametrize(
    ("module", "holds"),
    [(nn.Linear(2, 2), True), (nn.BatchNorm1d(2, affine=False), False), (nn.Sequential(nn.Linear(2, 2)), False)],
)
def test_own_parameters(module: nn.Module, holds: bool) -> None:
    assert modules.has_own_parameters(module) is holds


# --- mode-dependent modules


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class InHelper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.noise(x)

    def noise(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class InProperty(nn.Module):
    @property
    def scale(self) -> float:
        return 2.0 if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class InClosure(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def double() -> Tensor:
            return x * (2 if self.training else 1)

        return double()


class Inherited(Gated):
    pass


class CallsSuper(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else -x


def helper(module: nn.Module, x: Tensor) -> Tensor:
    return x if module.training else -x


class InFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(self, x)


class Overridden(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return x


class InInit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.was = self.training

    def forward(self, x: Tensor) -> Tensor:
        return x


class InTrain(nn.Module):
    def train(self, mode: bool = True) -> InTrain:
        self.training = mode
        return self

    def eval(self) -> InTrain:
        return self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        return x


class InOtherMethod(nn.Module):
    def report(self) -> str:
        return f"training: {self.training}"

    def forward(self, x: Tensor) -> Tensor:
        return x


class ByName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if getattr(self, "training") else x  # noqa: B009


class InWords(nn.Module):
    """training, self.training."""

    def forward(self, x: Tensor) -> Tensor:
        return x + len("training")


class InSubmodules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x)
        return out


MODE_DEPENDENT: tuple[nn.Module, ...] = (
    nn.BatchNorm1d(2),
    nn.BatchNorm2d(2),
    nn.BatchNorm3d(2),
    nn.SyncBatchNorm(2),
    nn.LazyBatchNorm1d(),
    nn.InstanceNorm1d(2, track_running_stats=True),
    nn.InstanceNorm2d(2, track_running_stats=True),
    nn.Dropout(),
    nn.Dropout1d(),
    nn.Dropout2d(),
    nn.Dropout3d(),
    nn.AlphaDropout(),
    nn.FeatureAlphaDropout(),
    nn.RReLU(),
    nn.RNN(2, 2, 2, dropout=0.1),
    nn.LSTM(2, 2, 2, dropout=0.1),
    nn.GRU(2, 2, 2, dropout=0.1),
    nn.MultiheadAttention(2, 1, dropout=0.1),
    *(
        kind()
        for kind in (Gated, InHelper, InProperty, InClosure, ByName, Inherited, CallsSuper, Decorated, InFunction)
    ),
)
MODE_INDEPENDENT: tuple[nn.Module, ...] = (
    nn.Linear(2, 2),
    nn.Conv2d(1, 1, 1),
    nn.Embedding(2, 2),
    nn.LayerNorm(2),
    nn.GroupNorm(1, 2),
    nn.RMSNorm(2),
    nn.LocalResponseNorm(2),
    nn.ReLU(),
    nn.GELU(),
    nn.Softmax(-1),
    nn.PReLU(),
    nn.Identity(),
    nn.Flatten(),
    nn.MaxPool2d(2),
    nn.AdaptiveAvgPool2d(1),
    nn.Upsample(2),
    nn.Sequential(nn.Dropout()),
    nn.ModuleList([nn.Dropout()]),
    nn.CrossEntropyLoss(),
    nn.BCEWithLogitsLoss(),
    nn.CosineSimilarity(),
    *(kind() for kind in (Overridden, InInit, InTrain, InOtherMethod, InWords, InSubmodules)),
)


@pytest.mark.parametrize("module", MODE_DEPENDENT, ids=lambda m: type(m).__name__)
def test_mode_dependent_modules(module: nn.Module) -> None:
    assert mode_dependence.is_mode_dependent(module)


@pytest.mark.parametrize("module", MODE_INDEPENDENT, ids=lambda m: type(m).__name__)
def test_modules_that_are_not_mode_dependent(module: nn.Module) -> None:
    assert not mode_dependence.is_mode_dependent(module)


def test_a_forward_set_on_an_instance_counts_for_that_instance_only() -> None:
    patched, plain = nn.ReLU(), nn.ReLU()
    patched.forward = lambda x: F.dropout(x, 0.5, patched.training)  # type: ignore[method-assign, assignment]
    assert mode_dependence.is_mode_dependent(patched)
    assert not mode_dependence.is_mode_dependent(plain)
