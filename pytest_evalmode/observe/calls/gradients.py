"""Every `backward()` and `autograd.grad()` -> the models whose graph it used, and the user's line that asked.

Both end in one function of torch's, which is wrapped while a window is open: so it does not matter by which name the
user calls them.
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
    """Write on the nodes of a graph that made its outputs whose it is; autograd keeps such notes and reads none."""
    for node in nodes:
        node_metadata(node)[_KEY] = model


def node_metadata(node: Node) -> dict[str, str]:
    """The notes that autograd keeps on a node; torch has them down as a method."""
    return cast(dict[str, str], node.metadata)


class GradientCalls:
    """Observes who uses the graphs of a window."""

    def __init__(self, sites: UserLines) -> None:
        self.failures = ObserverErrors()
        self._sites = sites
        self._uses: dict[ModelOperation, None] = {}

    def pop_operations(self) -> tuple[ModelOperation, ...]:
        taken, self._uses = tuple(self._uses), {}
        return taken

    def note(self, outputs: Iterable[Tensor], *, accumulate: bool, frame: FrameType) -> None:
        """Gradients of some outputs are asked for, in a frame."""
        try:
            models = _models(outputs)
            if models:
                by = "backward()" if accumulate else "autograd.grad()"
                self._uses[ModelOperation(models, by, self._sites.find_line(frame))] = None
        except Exception as error:
            self.failures.append(error)


def _models(outputs: Iterable[Any]) -> tuple[str, ...]:
    """The models whose outputs a graph goes through."""
    found: dict[str, None] = {}
    waiting = [output.grad_fn for output in outputs if is_tensor(output)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _KEY in node_metadata(node):
            found[node_metadata(node)[_KEY]] = None
        waiting.extend(following for following, _ in node.next_functions)
    return tuple(found)


run_backward_patch: Patch[GradientCalls] = Patch("_engine_run_backward", torch.autograd)


@run_backward_patch.replace_with
def _observed(outputs: Iterable[Tensor], *args: Any, **kwargs: Any) -> Any:
    for observer in run_backward_patch.observers:
        observer.note(outputs, accumulate=kwargs.get("accumulate_grad", True), frame=sys._getframe(1))
    return run_backward_patch.original(outputs, *args, **kwargs)
