"""ONNX: a graph that keeps training mode is told, if nobody asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx import TrainingMode

from tests.nets import Net, batch, only, watching

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters'


def by_dynamo(model: nn.Module, folder: Path) -> None:
    torch.onnx.export(model, (batch(),), folder / "net.onnx", dynamo=True, verbose=False)


def by_trace(model: nn.Module, folder: Path, **arguments: Any) -> None:
    """By the older exporter, which switches to eval mode and back unless it is asked not to."""
    torch.onnx.export(model, (batch(),), folder / "net.onnx", dynamo=False, **arguments)


@pytest.mark.parametrize("export", [by_dynamo, by_trace])
def test_a_model_in_eval_mode(export: Callable[..., None], tmp_path: Path) -> None:
    with watching(strict=True) as g:
        export(Net().eval(), tmp_path)
    assert g.violations == []


def test_a_model_in_training_mode(tmp_path: Path) -> None:
    with watching() as g:
        by_dynamo(Net(), tmp_path)
    assert only(g, "train-mode").message == "Net was exported in training mode"


def test_the_exporter_switches_to_eval_mode(tmp_path: Path) -> None:
    model = Net()
    with watching(strict=True) as g:
        by_trace(model, tmp_path)
    assert g.violations == []
    assert model.training


def test_training_mode_that_is_asked_for_is_told(tmp_path: Path) -> None:
    with watching() as g:
        by_trace(Net().eval(), tmp_path, training=TrainingMode.TRAINING)
    assert only(g, "train-mode").message == "Net was exported in training mode"
