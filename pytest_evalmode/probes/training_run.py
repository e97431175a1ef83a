"""A run in training mode on purpose: guards that are open around it do not observe the forwards that it calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pytest_evalmode.probes.probe_runs import Run


def run_in_training_mode(model: nn.Module, run: Callable[[], Run]) -> Run:
    """Switch a copied model to training mode and run it with autograd off."""
    model.train()
    with torch.no_grad():
        return run()
