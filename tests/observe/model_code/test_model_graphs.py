"""Traced, scripted, symbolically traced and exported models, read from their graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_evalmode.observe.model_code import model_graphs
from tests.nets import batch, rules, watching

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

Make = Callable[[nn.Module], Any]


def traced(module: nn.Module) -> torch.jit.ScriptModule:
    graph: torch.jit.ScriptModule = torch.jit.trace(module, batch(), check_trace=False)  # type: ignore[no-untyped-call]
    graph.eval()
    return graph


MAKERS: dict[str, Make] = {
    "trace": traced,
    "script": lambda m: torch.jit.script(m).eval(),
    "freeze": lambda m: torch.jit.freeze(torch.jit.script(m.eval())),
    "fx": lambda m: torch.fx.symbolic_trace(m).eval(),
    "export": lambda m: torch.export.export(m, (batch(),)).module(),
    "export, strict": lambda m: torch.export.export(m, (batch(),), strict=True).module(),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
KEEPS_MODE = ("trace", "export", "export, strict")
"""Those whose graph stores the mode in which it was made."""


def with_batch_norm(**arguments: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, **arguments))


@every_maker
def test_batch_norm_in_eval_mode_is_clean(make: Make) -> None:
    assert list(model_graphs.describe_batch_stats(make(with_batch_norm().eval()))) == []


@pytest.mark.parametrize("name", KEEPS_MODE)
def test_batch_norm_exported_in_training_mode_is_described(name: str) -> None:
    (sentence,) = model_graphs.describe_batch_stats(MAKERS[name](with_batch_norm().train()))
    assert "batch_norm" in sentence
    assert sentence.endswith("is in the graph with training=True")


@pytest.mark.parametrize("name", ["fx", "script"])
def test_batch_norm_that_reads_the_flag_is_clean(name: str) -> None:
    assert list(model_graphs.describe_batch_stats(MAKERS[name](with_batch_norm().train()))) == []


@pytest.mark.parametrize("name", ["script", *KEEPS_MODE])
def test_batch_norm_without_running_statistics_is_described(name: str) -> None:
    assert list(model_graphs.describe_batch_stats(MAKERS[name](with_batch_norm(track_running_stats=False).eval())))


class Functional(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training_always = training
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.mean + 1, training=self.training_always)


@pytest.mark.parametrize("name", ["trace", "fx", "export"])
@pytest.mark.parametrize("training", [True, False])
def test_functional_batch_norm_is_described_in_training_mode(name: str, training: bool) -> None:
    assert bool(list(model_graphs.describe_batch_stats(MAKERS[name](Functional(training).eval())))) == training


class Standardized(nn.Linear):
    """Weight standardization normalizes weights with batch_norm: no batch is involved."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight[None], None, None, training=True)[0]
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("name", ["fx", "export"])
def test_batch_norm_of_weights_is_clean(name: str) -> None:
    assert list(model_graphs.describe_batch_stats(MAKERS[name](nn.Sequential(Standardized(4, 4)).eval()))) == []


def test_a_plain_module_is_not_a_graph() -> None:
    assert list(model_graphs.describe_batch_stats(with_batch_norm().train())) == []
    assert not model_graphs.is_exported(with_batch_norm())
    assert not model_graphs.may_draw(nn.Dropout())


@every_maker
def test_only_torch_export_makes_exported_graphs(make: Make) -> None:
    assert model_graphs.is_exported(make(with_batch_norm().eval())) == (
        make in (MAKERS["export"], MAKERS["export, strict"])
    )


class Named(nn.Module):
    """A model about graphs, with its own attribute `graph`."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = {"nodes": [1, 2]}


def test_a_plain_attribute_named_graph_is_not_a_graph() -> None:
    assert not model_graphs.is_exported(Named())


class NoGraphYet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    @property
    def graph(self) -> object:
        raise RuntimeError("call build() first")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


@torch.no_grad()
def test_graph_may_be_a_property_that_raises() -> None:
    assert not model_graphs.is_exported(NoGraphYet())
    with watching() as g:
        NoGraphYet()(batch())
    assert rules(g) == {"train-mode"}


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x), 0.5, self.training)


def test_a_scripted_forward_may_read_the_mode_and_a_traced_one_does_not() -> None:
    assert model_graphs.reads_training(torch.jit.script(Gated()))
    assert not model_graphs.reads_training(torch.jit.script(nn.Linear(4, 4)))
    assert not model_graphs.reads_training(MAKERS["trace"](Gated()))


def test_a_torchscript_graph_may_draw() -> None:
    assert model_graphs.may_draw(MAKERS["script"](Gated()))
    assert model_graphs.may_draw(MAKERS["trace"](Gated().train()))
    assert not model_graphs.may_draw(MAKERS["script"](nn.Linear(4, 4)))
