"""Values of expressions in a module's code, as far as its plain attributes decide them, without running the code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

UNKNOWN: Final = object()
"""The value of an expression that the attributes do not decide."""

_PLAIN = (bool, int, float, str)
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


def value_of(node: ast.AST | None, attributes: Mapping[str, object]) -> object:
    """Return the value of an expression, given the attributes of `self`; UNKNOWN if they do not decide it.

    `self.training and x.any()` is False in eval mode, for example.
    """
    value: object
    match node:
        case ast.Constant():
            return node.value
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            value = attributes.get(name, UNKNOWN)
            return value if value is None or type(value) in _PLAIN else UNKNOWN
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = value_of(operand, attributes)
            return value if value is UNKNOWN else not value
        case ast.BoolOp(op=op, values=operands):
            values, is_or = [value_of(each, attributes) for each in operands], isinstance(op, ast.Or)
            if any(value is not UNKNOWN and bool(value) is is_or for value in values):
                return is_or  # one operand decides it alone
            return UNKNOWN if UNKNOWN in values else values[-1]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            value = value_of(test, attributes)
            return value if value is UNKNOWN else value_of(body if value else orelse, attributes)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            values = [value_of(left, attributes), value_of(right, attributes)]
            with suppress(TypeError):  # None < 0, for example
                return UNKNOWN if UNKNOWN in values else _COMPARISONS[type(op)](*values)
    return UNKNOWN
