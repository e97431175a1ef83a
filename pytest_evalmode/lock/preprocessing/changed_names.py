"""The names that a function changes when it runs, read from its source: counters and caches, not parameters."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

_MUTATORS = frozenset("add append appendleft clear discard extend insert pop popitem remove setdefault update".split())


@dataclass(slots=True)
class ChangedNames:
    """The names that one function changes."""

    attributes: set[str] = field(default_factory=set)
    """Attributes of its first argument."""
    variables: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    """The methods of its first argument that it calls."""


_known: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def changed_attributes(kind: type) -> frozenset[str]:
    """Return the attributes that a call of an object of this class changes, in `forward` for example."""
    if kind not in _known:
        members = [member for base in kind.__mro__ for member in vars(base).items()]
        changed = {name for name, member in members if isinstance(member, functools.cached_property)}
        pending = ["__call__", "forward"]
        for name in pending:
            function = function_of(inspect.getattr_static(kind, name, None))
            if getattr(function, "__module__", None) != "torch.nn.modules.module":
                found = changed_names(function)
                changed |= found.attributes
                pending += found.called.difference(pending)
        _known[kind] = frozenset(changed)
    return _known[kind]


def changed_names(function: Any) -> ChangedNames:
    """Return the names that a function changes; none if it has no source."""
    found = ChangedNames()
    try:
        function = inspect.unwrap(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    except (OSError, TypeError, SyntaxError, ValueError, AttributeError):
        return found
    me = arguments[0] if arguments else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.variables.update(node.names)
        target: ast.AST | None = None
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in _MUTATORS else None
            if isinstance(node.func.value, ast.Name) and node.func.value.id == me:
                found.called.add(node.func.attr)
        attribute = None
        while isinstance(target, ast.Attribute | ast.Subscript):
            attribute = target.attr if isinstance(target, ast.Attribute) else attribute
            target = target.value
        if isinstance(target, ast.Name) and target.id != me:
            found.variables.add(target.id)
        elif isinstance(target, ast.Name) and attribute is not None:
            found.attributes.add(attribute)
    return found


def function_of(member: Any) -> Any:
    """Return the function of a method, static method, cached function or property; other members as they are."""
    for name in ("__func__", "fget", "func"):
        if not inspect.isfunction(member) and inspect.isfunction(getattr(member, name, None)):
            member = getattr(member, name)
    return member
