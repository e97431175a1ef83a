"""A model of which a graph is made while it is in training mode, and the graphs that are as they should be."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import export  # by its name, as many import it

from tests.nets import Net, batch, watching


def by_name(model: nn.Module) -> None:
    export(model, (batch(),))


def strictly(model: nn.Module) -> None:
    torch.export.export(model, (batch(),), strict=True)


def trace(model: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(model, (batch(),), check_trace=False)  # type: ignore[no-untyped-call]


def onnx(model: nn.Module) -> None:
    """By the older way, which puts a model in eval mode unless it is told not to."""
    pytest.importorskip("onnx")
    with warnings.catch_warnings(action="ignore"):
        kept = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model, (batch(),), io.BytesIO(), dynamo=False, training=kept)  # type: ignore[arg-type]


EACH = pytest.mark.parametrize("run", [by_name, strictly, trace, onnx])


def half_training() -> nn.Module:
    model = Net().eval()
    model.drop.train()
    return model


@EACH
@pytest.mark.parametrize(("make", "parts"), [(Net, {"Net.bn", "Net.drop"}), (half_training, {"Net.drop"})])
def test_a_model_in_training_mode(run: Any, make: Any, parts: set[str]) -> None:
    with watching(allow="state-mutated") as g:
        run(make())
    (violation,) = g.violations
    assert (violation.rule, violation.count) == ("train-mode", 1)
    assert violation.message == "Net was exported in training mode"
    assert {subject.partition(" ")[0] for subject in violation.subjects} == parts
    assert violation.at is not None
    assert "batch()," in violation.at.source
    assert violation.remedy.startswith("call eval() before export")


@EACH
def test_a_model_in_eval_mode_or_without_a_mode(run: Any) -> None:
    with watching() as g:
        run(Net().eval())
        run(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert g.violations == []


def test_an_export_that_fails_has_made_no_graph() -> None:
    class Fails(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    with watching() as g, pytest.raises(ValueError, match="no"):
        by_name(Fails())
    assert g.violations == []


def test_an_exported_graph_may_run_and_be_exported_again() -> None:
    graph = export(Net().eval(), (batch(),)).module()
    with watching() as g, torch.no_grad():
        graph(batch())
        by_name(graph)
    assert g.violations == []


def test_the_older_export_to_onnx_puts_a_model_in_eval_mode() -> None:
    pytest.importorskip("onnx")
    model = Net()
    with watching(model) as g, warnings.catch_warnings(action="ignore"):
        torch.onnx.export(model, (batch(),), io.BytesIO(), dynamo=False)  # type: ignore[arg-type]
    assert g.violations == []


def exported(model: nn.Module) -> Any:
    return export(model, (batch(),)).module()


def traced(model: nn.Module) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(model, (batch(),), check_trace=False).eval()  # type: ignore[no-untyped-call]


GRAPHS = pytest.mark.parametrize("make", [exported, traced])


@GRAPHS
def test_what_a_graph_does_is_told_with_the_line_that_made_it(make: Any) -> None:
    with watching(allow="state-mutated") as g, torch.no_grad():
        graph = make(Net())
        graph(batch())
    stats, draws = g.violations
    assert (stats.rule, draws.rule) == ("batch-stats", "random-forward")
    for violation in (stats, draws):
        assert violation.since is not None
        assert "(batch(),)" in violation.since.source
        assert violation.remedy.startswith("call eval() before export")


@GRAPHS
def test_the_graph_of_one_model_says_nothing_of_another(make: Any) -> None:
    with watching(allow="state-mutated") as g, torch.no_grad():
        make(Net())(batch())
        make(nn.Sequential(nn.Linear(4, 2), nn.Dropout()))
    (violation,) = (v for v in g.violations if v.rule == "train-mode")
    assert violation.message == "Sequential was exported in training mode"
