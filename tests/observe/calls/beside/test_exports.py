"""A model of which a graph is made while it is in training mode, and the graphs that are as they should be."""

from __future__ import annotations

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


EACH = pytest.mark.parametrize("run", [by_name, strictly, trace])


def half_training() -> nn.Module:
    model = Net().eval()
    model.drop.train()
    return model


@EACH
@pytest.mark.parametrize(("make", "parts"), [(Net, {"Net.bn", "Net.drop"}), (half_training, {"Net.drop"})])
def test_a_model_in_training_mode(run: Any, make: Any, parts: set[str]) -> None:
    with watching() as g:
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
