"""Compiled models and graphs of models: making one is not inference, running one is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pytest_evalmode import guard
from tests.nets import Dropper, Net, batch, rules, watching

pytestmark = [
    pytest.mark.usefixtures("fresh"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def trace(model: nn.Module, x: Tensor, check: bool) -> Any:
    return torch.jit.trace(model, x, check_trace=check and not model.training)  # type: ignore[no-untyped-call]


GRAPHS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "trace": partial(trace, check=False),
    "trace and check": partial(trace, check=True),
    "script": lambda m, x: torch.jit.script(m),
    "freeze": lambda m, x: torch.jit.freeze(torch.jit.script(m.eval())),
    "fx": lambda m, x: torch.fx.symbolic_trace(m),
    "export": lambda m, x: torch.export.export(m, (x,)).module(),
    "export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
}
every_graph = pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)


@every_graph
def test_making_a_graph_is_not_inference(make: Callable[[nn.Module, Tensor], Any]) -> None:
    with watching() as g:
        make(Dropper().eval(), batch())
    assert not rules(g)
    assert [model.forwards for model in g.window.models] in ([], [0])


@every_graph
@torch.no_grad()
def test_a_graph_of_an_eval_model_is_clean(make: Callable[[nn.Module, Tensor], Any]) -> None:
    with watching() as g:
        graph = make(Net().eval(), batch())
        graph(batch())
        graph(batch())
    assert not rules(g)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*reduce_range", "ignore:.*quantize")
@torch.no_grad()
def test_quantizing_is_not_inference() -> None:
    """The observers of torch change while it quantizes the model; the quantized model does not change."""
    with watching() as g:
        model = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})  # type: ignore[no-untyped-call]
        model(batch())
        model(batch())
    assert not rules(g)


@pytest.mark.parametrize(
    ("name", "then_eval", "expected"),
    [
        ("script", False, {"train-mode", "state-mutated"}),
        ("script", True, set()),
        ("fx", False, {"train-mode", "state-mutated"}),
        ("fx", True, set()),
        ("trace", True, {"batch-stats", "random-forward", "state-mutated"}),
        ("export", False, {"batch-stats", "random-forward", "state-mutated"}),
        ("export, strict", False, {"batch-stats", "random-forward", "state-mutated"}),
    ],
)
@torch.no_grad()
def test_a_graph_of_a_training_model_is_reported(name: str, then_eval: bool, expected: set[str]) -> None:
    with watching() as g:
        graph = GRAPHS[name](Net(), batch())
        if then_eval:
            graph.eval()
        graph(batch())
    assert rules(g) == expected


# --- torch.compile


@torch.no_grad()
def test_guarding_does_not_recompile() -> None:
    frames = CompileCounter()
    model = torch.compile(Net().eval(), backend=frames, fullgraph=True)
    x = batch()
    expected = model(x)
    for guarded in (True, False, True, True, False):
        if guarded:
            with guard():
                assert torch.equal(model(x), expected)
        else:
            assert torch.equal(model(x), expected)
    assert frames.frame_count == 1


@torch.no_grad()
def test_a_model_compiled_inside_a_window_stays_compiled() -> None:
    frames = CompileCounter()
    model = torch.compile(Net().eval(), backend=frames, fullgraph=True)
    x = batch()
    with guard():
        expected = model(x)
        model(x)
    assert torch.equal(model(x), expected)
    with guard():
        model(x)
    assert frames.frame_count == 1


@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_a_compiled_model_is_observed(in_place: bool) -> None:
    model: Any = Net()
    if in_place:
        model.compile(backend="eager", fullgraph=True)
    else:
        model = torch.compile(model, backend="eager", fullgraph=True)
    with watching() as g:
        model(batch())
    assert rules(g) == {"train-mode", "state-mutated"}
    model.eval()
    with watching() as g:
        model(batch())
    assert not rules(g)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor warns about this machine
@torch.no_grad()
def test_a_model_compiled_by_inductor_is_observed() -> None:
    model: Any = torch.compile(Net().eval(), fullgraph=True)
    x = batch()
    expected = model(x)
    with watching() as g:
        assert torch.equal(model(x), expected)
        model.train()
        model(x)
    assert rules(g) == {"train-mode", "state-mutated"}
