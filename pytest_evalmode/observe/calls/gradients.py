"""Observer of `backward()` and `autograd.grad()`: the models whose graph was used, and the user's line.

Both call the same private function of torch, which is patched while a window is open, so they are observed under each
of their names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import Node

from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import ModelOperation

_KEY = "pytest-evalmode"


def mark_nodes(nodes: Iterable[Node], model: str) -> None:
    """Store the name of a model in the autograd nodes of its outputs.

    Autograd keeps the metadata of a node but never reads it.
    """
    for node in nodes:
        node_metadata(node)[_KEY] = model


def node_metadata(node: Node) -> dict[str, str]:
    """Return the metadata of an autograd node; torch's type hints call it a method."""
    return cast(dict[str, str], node.metadata)


class GradientCalls:
    """The calls of a window that computed gradients through a watched model."""

    def __init__(self, user_lines: UserLines) -> None:
        self.failures = ObserverErrors()
        self._user_lines = user_lines
        self._operations: dict[ModelOperation, None] = {}

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        """Return the calls recorded so far and forget them."""
        recorded, self._operations = tuple(self._operations), {}
        return recorded

    def add_call(self, outputs: Iterable[Tensor], *, accumulate: bool, frame: FrameType) -> None:
        """Record a call that computes gradients of `outputs`; `accumulate` says whether it adds them to `.grad`."""
        try:
            models = _find_models(outputs)
            if models:
                name = "backward()" if accumulate else "autograd.grad()"
                self._operations[ModelOperation(models, name, self._user_lines.find_line(frame))] = None
        except Exception as error:
            self.failures.append(error)


def _find_models(outputs: Iterable[Any]) -> tuple[str, ...]:
    """Return the models whose outputs are in the autograd graph of some tensors."""
    models: dict[str, None] = {}
    pending = [output.grad_fn for output in outputs if is_tensor(output)]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _KEY in node_metadata(node):
            models[node_metadata(node)[_KEY]] = None
        pending.extend(following for following, _ in node.next_functions)
    return tuple(models)


run_backward_patch: Patch[GradientCalls] = Patch("_engine_run_backward", torch.autograd)


@run_backward_patch.replace_with
def _observed_run_backward(outputs: Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
    for observer in run_backward_patch.observers:
        observer.add_call(outputs, accumulate=kwargs.get("accumulate_grad", True), frame=sys._getframe(1))
    return run_backward_patch.original(outputs, *args, **kwargs)
