"""Models that are exported in training mode, and the graphs made from them."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import export  # by its name, as many import it

from tests.nets import Net, batch, watching


def export_by_name(model: nn.Module) -> None:
    export(model, (batch(),))


def export_strict(model: nn.Module) -> None:
    torch.export.export(model, (batch(),), strict=True)


def trace(model: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(model, (batch(),), check_trace=False)  # type: ignore[no-untyped-call]


def onnx(model: nn.Module) -> None:
    """With the older exporter, which switches to eval mode unless `training` is PRESERVE."""
    pytest.importorskip("onnx")
    with warnings.catch_warnings(action="ignore"):
        preserve = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model, (batch(),), io.BytesIO(), dynamo=False, training=preserve)  # type: ignore[arg-type]


every_exporter = pytest.mark.parametrize("run", [export_by_name, export_strict, trace, onnx])


def dropout_in_training_mode() -> nn.Module:
    model = Net().eval()
    model.drop.train()
    return model


@every_exporter
@pytest.mark.parametrize(("make", "parts"), [(Net, {"Net.bn", "Net.drop"}), (dropout_in_training_mode, {"Net.drop"})])
def test_exporting_a_model_in_training_mode_is_reported(run: Any, make: Any, parts: set[str]) -> None:
    with watching(allow="state-mutated") as g:
        run(make())
    (violation,) = g.violations
    assert (violation.rule, violation.count) == ("train-mode", 1)
    assert violation.message == "Net was exported in training mode"
    assert {subject.partition(" ")[0] for subject in violation.subjects} == parts
    assert violation.at is not None
    assert "batch()," in violation.at.source
    assert violation.remedy.startswith("call eval() before export")


@every_exporter
def test_exporting_a_model_in_eval_mode_or_without_a_mode_is_clean(run: Any) -> None:
    with watching() as g:
        run(Net().eval())
        run(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    assert g.violations == []


def test_a_failed_export_is_not_reported() -> None:
    class Fails(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    with watching() as g, pytest.raises(ValueError, match="no"):
        export_by_name(Fails())
    assert g.violations == []


def test_an_exported_graph_may_run_and_be_exported_again() -> None:
    graph = export(Net().eval(), (batch(),)).module()
    with watching() as g, torch.no_grad():
        graph(batch())
        export_by_name(graph)
    assert g.violations == []


def test_the_older_onnx_exporter_switches_the_model_to_eval_mode() -> None:
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


every_graph = pytest.mark.parametrize("make", [exported, traced])


@every_graph
def test_violations_of_a_graph_name_the_line_that_made_it(make: Any) -> None:
    with watching(allow="state-mutated") as g, torch.no_grad():
        graph = make(Net())
        graph(batch())
    stats, draws = g.violations
    assert (stats.rule, draws.rule) == ("batch-stats", "random-forward")
    for violation in (stats, draws):
        assert violation.since is not None
        assert "(batch(),)" in violation.since.source
        assert violation.remedy.startswith("call eval() before export")


@every_graph
def test_the_graph_of_one_model_does_not_explain_another_model(make: Any) -> None:
    with watching(allow="state-mutated") as g, torch.no_grad():
        make(Net())(batch())
        make(nn.Sequential(nn.Linear(4, 2), nn.Dropout()))
    (violation,) = (v for v in g.violations if v.rule == "train-mode")
    assert violation.message == "Sequential was exported in training mode"
