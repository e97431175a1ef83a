"""ONNX exports: a graph that keeps training mode is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx import TrainingMode

from tests.nets import Net, batch, only, watching

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters


def export_by_dynamo(model: nn.Module, folder: Path) -> None:
    torch.onnx.export(model, (batch(),), folder / "net.onnx", dynamo=True, verbose=False)


def export_by_trace(model: nn.Module, folder: Path, **arguments: Any) -> None:
    """With the older exporter, which switches to eval mode and back unless `training` is given."""
    torch.onnx.export(model, (batch(),), folder / "net.onnx", dynamo=False, **arguments)


@pytest.mark.parametrize("export", [export_by_dynamo, export_by_trace])
def test_exporting_a_model_in_eval_mode_is_clean(export: Callable[..., None], tmp_path: Path) -> None:
    with watching(strict=True) as g:
        export(Net().eval(), tmp_path)
    assert g.violations == []


def test_exporting_a_model_in_training_mode_is_reported(tmp_path: Path) -> None:
    with watching() as g:
        export_by_dynamo(Net(), tmp_path)
    assert only(g, "train-mode").message == "Net was exported in training mode"


def test_the_older_exporter_switches_to_eval_mode(tmp_path: Path) -> None:
    model = Net()
    with watching(strict=True) as g:
        export_by_trace(model, tmp_path)
    assert g.violations == []
    assert model.training


def test_exporting_in_requested_training_mode_is_reported(tmp_path: Path) -> None:
    with watching() as g:
        export_by_trace(Net().eval(), tmp_path, training=TrainingMode.TRAINING)
    assert only(g, "train-mode").message == "Net was exported in training mode"
