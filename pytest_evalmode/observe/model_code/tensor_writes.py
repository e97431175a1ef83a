"""The line in a model's forward that writes to one of its tensors, found in the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from types import CodeType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.model_code.draw_calls import definitions_of

Line = tuple[CodeType, int]

_ITERATIONS = frozenset({"parameters", "buffers", "named_parameters", "named_buffers", "state_dict"})


def find_writes(model: nn.Module, path: str) -> Iterator[Line]:
    """Yield the lines that write to a tensor, in the forward of the module that owns it, then of those around it.

    A module in training mode is left out: it may write.
    """
    parts = dict(modules.walk(model))
    by_iteration: list[Line] = []
    owner, _, name = path.rpartition(".")
    while True:
        module = parts.get(owner)
        for function in forward_code.functions_of(module) if module and not modules.training_flag(module) else ():
            iterates = not _ITERATIONS.isdisjoint(function.__code__.co_names)
            for node in chain.from_iterable(map(ast.walk, definitions_of(function.__code__))):
                for target in _targets(node):
                    line = function.__code__, getattr(node, "lineno", 0)
                    root, has_data = _root_of(target)
                    if root == f"self.{name}":
                        yield line
                    elif has_data and iterates and "." not in root:
                        by_iteration.append(line)
        if not owner:
            break
        owner, _, name = owner.rpartition(".")
    yield from by_iteration


def _targets(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a statement or call writes to: `x` in `x[0] = 1`, `x.data = y` and `x.add_(1)`."""
    match node:
        case ast.Assign(targets=targets):
            return targets
        case ast.AugAssign(target=target):
            return [target]
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name.endswith("_") and not name.endswith("__"):
            return [value]
    return []


def _root_of(target: ast.expr) -> tuple[str, bool]:
    """Return the variable or attribute of `self` that an expression begins with, and whether it reads `.data`."""
    has_data = False
    while isinstance(target, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                return f"self.{target.attr}", has_data
            has_data |= target.attr == "data"
        target = target.func if isinstance(target, ast.Call) else target.value
    return target.id if isinstance(target, ast.Name) else ".", has_data
