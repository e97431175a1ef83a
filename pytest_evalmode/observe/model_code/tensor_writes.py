"""The line in a model's forward that writes to one of its tensors, found in the source without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from types import CodeType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.model_code.draw_calls import nodes_of

Line = tuple[CodeType, int]

_ITERATIONS = frozenset({"parameters", "buffers", "named_parameters", "named_buffers", "state_dict"})
_ROOT = re.compile(r"(self\.)?\w+")
"""The variable or attribute of `self` that an expression begins with."""
_DATA = re.compile(r"\.data\b")


def find_writes(model: nn.Module, path: str) -> Iterator[Line]:
    """Yield the lines that write to a tensor, in the forward of the module that owns it, then of those around it.

    A module in training mode is left out: it may write.
    """
    parts = dict(modules.walk(model))
    by_iteration: list[Line] = []
    steps = path.split(".")
    for depth in reversed(range(len(steps))):
        module = parts.get(".".join(steps[:depth]))
        for function in forward_code.functions_of(module) if module and not modules.training_flag(module) else ():
            iterates = not _ITERATIONS.isdisjoint(function.__code__.co_names)
            for node in nodes_of(function.__code__):
                for target in map(ast.unparse, _targets(node)):
                    line = function.__code__, getattr(node, "lineno", 0)
                    root = _ROOT.match(target)
                    if root and root[0] == f"self.{steps[depth]}":
                        yield line
                    elif root and not root[1] and iterates and _DATA.search(target):
                        by_iteration.append(line)
    yield from by_iteration


def _targets(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a statement or call writes to: `x` in `x[0] = 1`, `x.data = y` and `x.add_(1)`."""
    targets: list[ast.expr] = []
    match node:
        case ast.Assign():
            targets = node.targets
        case ast.AugAssign():
            targets = [node.target]
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name.endswith("_") and not name.endswith("__"):
            targets = [value]
    return [target for target in targets if isinstance(target, ast.Attribute | ast.Subscript | ast.Call)]
