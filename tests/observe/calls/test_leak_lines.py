"""What a test sets on a shared model: it is a leak unless it is restored, or set by the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import Guard
from tests.nets import only, rules, watching


class Model(nn.Module):
    bias: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.drop, self.scale = nn.Dropout(0.5), 1.0
        self.mean, self.options = torch.zeros(2), {"k": 1}
        self.register_buffer("table", torch.zeros(2))
        self.heads = nn.ModuleDict({"a": nn.ReLU()})
        self.kind: Any = None
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen, self.kind = len(x), "seen"
        y: Tensor = self.scale * self.layers(x)
        return y

    def predict(self, x: Tensor) -> Tensor:
        self.kind = "predicted"
        y: Tensor = self.layers(x)
        return y


def run(change: Callable[[Any, Guard], object], *, shared: bool = True) -> Guard:
    model: Any = Model().eval()
    with watching(*([model] if shared else ()), strict=True) as g, torch.no_grad():
        g.watch(model, "model")
        model(torch.ones(3, 4))
        change(model, g)
        model(torch.ones(2, 4))
    return g


def replaces_forward(model: Any, _: Guard) -> None:
    old = model.layers[0].forward
    model.layers[0].forward = lambda x: old(x) * 0


def replaces_submodule(model: Any, _: Guard) -> None:
    model.layers[1] = nn.GELU().eval()


def replaces_submodule_by_one_in_training_mode(model: Any, _: Guard) -> None:
    model.layers[1] = nn.GELU()


def replaces_part_of_a_dict(model: Any, _: Guard) -> None:
    model.heads["a"] = nn.GELU().eval()


def replaces_by_one_of_the_same_type(model: Any, _: Guard) -> None:
    model.drop = nn.Dropout(0.9).eval()


def replaces_by_add_module(model: Any, _: Guard) -> None:
    model.layers.add_module("1", nn.GELU().eval())


def sets_probability(model: Any, _: Guard) -> None:
    model.drop.p = 0.1


def sets_new_attribute(model: Any, _: Guard) -> None:
    model.temperature = 2.0


def sets_existing_attribute(model: Any, _: Guard) -> None:
    model.scale = 2.0


def sets_a_tensor(model: Any, _: Guard) -> None:
    model.mean = torch.ones(2)


def sets_a_dict(model: Any, _: Guard) -> None:
    model.options = {"k": 2}


LEAKS: dict[Callable[[Any, Guard], object], str] = {
    replaces_forward: "Model.layers.0.forward changed from (absent) to replaces_forward.<locals>.<lambda>",
    replaces_submodule: "Model.layers.1 changed from ReLU to GELU",
    replaces_submodule_by_one_in_training_mode: "Model.layers.1 changed from ReLU to GELU",
    replaces_part_of_a_dict: "Model.heads.a changed from ReLU to GELU",
    replaces_by_one_of_the_same_type: "Model.drop changed from Dropout to another Dropout",
    replaces_by_add_module: "Model.layers.1 changed from ReLU to GELU",
    sets_probability: "Model.drop.p changed from 0.5 to 0.1",
    sets_a_tensor: "Model.mean changed from tensor of shape (2,) to another tensor of shape (2,)",
    sets_a_dict: "Model.options changed from {'k': 1} to {'k': 2}",
    sets_new_attribute: "Model.temperature changed from (absent) to 2.0",
    sets_existing_attribute: "Model.scale changed from 1.0 to 2.0",
}


@pytest.mark.parametrize(("change", "message"), LEAKS.items(), ids=[each.__name__ for each in LEAKS])
def test_a_change_of_a_shared_model_is_a_leak(change: Callable[[Any, Guard], object], message: str) -> None:
    violation = only(run(change), "model-leaked")
    assert violation.message == message
    assert violation.at is not None
    assert violation.at.source.startswith("model.")


def restores(model: Any, _: Guard) -> None:
    model.scale, old = 2.0, model.scale
    model.scale = old


def restores_a_forward(model: Any, _: Guard) -> None:
    old = model.layers[0].forward
    model.layers[0].forward = lambda x: old(x) * 0
    model(torch.ones(3, 4))
    model.layers[0].forward = old


def restores_the_value_of_the_class(model: Any, _: Guard) -> None:
    model.bias, old = 2.0, model.bias
    model.bias = old


def takes_another_forward(model: Any, _: Guard) -> None:
    model.layers[0].forward = nn.Linear(4, 4).forward


def restores_a_submodule(model: Any, _: Guard) -> None:
    model.layers[1], old = nn.GELU(), model.layers[1]
    model.layers[1] = old


def restores_part_of_a_dict(model: Any, _: Guard) -> None:
    model.heads["a"], old = nn.GELU(), model.heads["a"]
    model.heads["a"] = old


def sets_an_equal_value(model: Any, _: Guard) -> None:
    model.scale = 1.0


def sets_equal_tensors(model: Any, _: Guard) -> None:
    model.mean, model.table, model.options = torch.zeros(2), torch.zeros(2), {"k": 1}


def sets_in_pause(model: Any, g: Guard) -> None:
    with g.paused():
        model.scale = 2.0


def runs_a_method(model: Any, _: Guard) -> None:
    model.predict(torch.ones(1, 4))


def restores_in_another_part(model: Any, g: Guard) -> None:
    model.scale = 2.0
    model.drop, old = nn.Dropout(0.9).eval(), model.drop
    with g.allow(train="no_such_module"):
        pass
    model.scale = 1.0
    model.drop = old


CLEAN = [
    restores,
    restores_a_forward,
    restores_the_value_of_the_class,
    restores_a_submodule,
    restores_part_of_a_dict,
    sets_an_equal_value,
    sets_equal_tensors,
    sets_in_pause,
    runs_a_method,
]


@pytest.mark.parametrize("change", CLEAN)
def test_these_are_not_a_leak(change: Callable[[Any, Guard], object]) -> None:
    assert run(change).violations == []


def test_a_forward_that_monkeypatch_restores_after_the_window_is_not_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(model: Any, _: Guard) -> None:
        monkeypatch.setattr(model.layers[0], "forward", lambda x: x)

    assert run(replace).violations == []


def test_the_forward_of_another_module_is_a_leak() -> None:
    assert rules(run(takes_another_forward)) == {"model-leaked"}


def test_a_value_may_be_restored_in_another_part() -> None:
    only(run(restores_in_another_part), "unused-exemption")


@pytest.mark.parametrize("change", LEAKS, ids=[each.__name__ for each in LEAKS])
def test_a_model_of_the_test_itself_may_change(change: Callable[[Any, Guard], object]) -> None:
    assert run(change, shared=False).violations == []
