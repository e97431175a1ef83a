"""How forwards use an attribute: whether one can read what an earlier one stored, judging by the source.

The code is walked in the order in which it runs, with all branches, and into the methods that it names.  What counts is
the first access on each path: a forward that writes an attribute before it reads it depends on no earlier forward.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable
from itertools import chain
from types import FunctionType
from typing import Any, Literal

from torch import nn

from pytest_evalmode.observe.model_code.draw_calls import definitions_of
from pytest_evalmode.observe.model_code.forward_code import definitions_in, forwards_of, plain_function

States = frozenset[str]
"""The accesses on the paths so far: "" none, "r" read, "w" written first, "e" an element written first, and "x": what
was there before was read, and it was written."""

_NONE: States = frozenset({""})
_NEXT = {
    "read": {"": "r", "r": "r", "w": "w", "e": "x", "x": "x"},
    "write": {"": "w", "r": "x", "w": "w", "e": "w", "x": "x"},
    "element": {"": "e", "r": "x", "w": "w", "e": "e", "x": "x"},
}
_CONTEXTS = {ast.Load: "read", ast.Store: "write", ast.Del: "write"}
_HARMLESS_CALLS = frozenset({"super", "isinstance", "type", "len", "id", "print"})
_BY_NAME = frozenset({"getattr", "setattr", "hasattr", "delattr"})
_PREFIX = re.compile(r"f?['\"](\w*)")
"""The constant text with which the source of a string begins: `layer` in `f"layer{i}"`."""


class _UnclearError(Exception):
    """The code uses the attribute in a way that cannot be followed."""


Use = Literal["fresh", "conditional", "carried"]
"""How an attribute is used.  "fresh": every forward that reads it has written it.  "conditional": some forwards write
it, others only read it.  "carried": a forward may read what an earlier one has stored, and writes it."""


def attribute_use(module: nn.Module, attribute: str, others: Iterable[nn.Module]) -> Use:
    """Return how forwards use an attribute of a module; the code of the model's other modules may set it too."""
    own, states = _NONE, _NONE
    try:
        # A forward that was replaced on the instance mostly calls that of the type.
        replaced = [inspect.getattr_static(type(module), "forward")] if "forward" in vars(module) else []
        hooks = *module._forward_hooks.values(), *module._forward_pre_hooks.values()
        for start in (*forwards_of(module), *replaced, *hooks):
            if (function := _plain(start)) is None:
                return "carried"
            own |= _Walk(type(module), attribute).function(_NONE, function)
        for start in chain.from_iterable(map(forwards_of, {type(other): other for other in others}.values())):
            if (function := _plain(start)) is not None:
                states |= _Walk(None, attribute).function(_NONE, function)
    except (_UnclearError, RecursionError):
        return "carried"
    states |= own
    if "x" in states or states.isdisjoint("we"):
        return "carried"
    return "fresh" if own.isdisjoint("we") or "r" not in own else "conditional"


class _Walk:
    """A walk through the code that a forward runs, for one attribute."""

    def __init__(self, owner: type | None, attribute: str) -> None:
        self._bases = owner.__mro__ if owner is not None else ()
        """Empty if the code is another module's: then an attribute of any object but itself counts."""
        self._attribute = attribute
        self._stack: list[tuple[FunctionType, str]] = []
        """The functions that are being walked, each with the name of its first parameter."""
        self._returned: list[States] = []

    def function(self, states: States, function: FunctionType) -> States:
        """Return the states after a call of a function."""
        if any(function is outer for outer, _ in self._stack):
            return states
        definitions = definitions_of(function.__code__)
        if len(definitions) != 1:
            if self._bases:
                raise _UnclearError
            return states
        parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
        self._stack.append((function, parameters[0] if parameters else ""))
        self._returned.append(frozenset())
        node: Any = definitions[0]
        states = self._visit(states, node.body)
        self._stack.pop()
        return states | self._returned.pop()

    def _visit(self, states: States, *nodes: Any) -> States:
        for node in nodes:
            if isinstance(node, list):
                states = self._visit(states, *node)
            elif isinstance(node, ast.AST) and states:
                states = self._visit_node(states, node)
        return states

    def _visit_node(self, states: States, node: Any) -> States:
        match node:
            case ast.Return():
                self._returned[-1] |= self._visit(states, node.value)
                return frozenset()
            case ast.Raise():
                return frozenset()
            case ast.Assign():
                return self._visit(states, node.value, node.targets)
            case ast.AnnAssign() | ast.NamedExpr():
                return self._visit(states, node.value, node.target) if node.value else states
            case ast.AugAssign():
                read = node.target.value if isinstance(node.target, ast.Subscript) else node.target
                states = self._access(states, "read") if self._is_attribute(read) else states
                return self._visit(states, node.value, node.target)
            case ast.If() | ast.IfExp():
                states = self._visit(states, node.test)
                return self._visit(states, node.body) | self._visit(states, node.orelse)
            case ast.BoolOp():
                return self._maybe_each(self._visit(states, node.values[0]), node.values[1:])
            case ast.Match():
                states = self._visit(states, node.subject)
                return states.union(*(self._visit(states, case.guard, case.body) for case in node.cases))
            case ast.Try():
                tried = self._visit(states, node.body)
                after = self._visit(tried, node.orelse)
                after = after.union(*(self._visit(states | tried, handler.body) for handler in node.handlers))
                return self._visit(after, node.finalbody)
            case ast.For() | ast.AsyncFor() | ast.While():
                states = self._visit(states, getattr(node, "iter", None) or getattr(node, "test", None))
                target = getattr(node, "target", None)
                return self._visit(self._maybe_each(states, [[target, node.body]] * 2), node.orelse)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                first, *_ = node.generators
                items = [getattr(node, name, None) for name in ("elt", "key", "value")]
                return self._maybe_each(self._visit(states, first.iter), [[*node.generators, *items]] * 2)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._returned.append(frozenset())
                after = self._visit(states, node.body)
                return states | after | self._returned.pop()
            case ast.Attribute():
                return self._visit_attribute(states, node)
            case ast.Subscript() if not isinstance(node.ctx, ast.Load) and self._is_attribute(node.value):
                return self._access(self._visit(states, node.slice), "element")
            case ast.Call(func=ast.Name(id=name)) if name in _HARMLESS_CALLS:
                return self._visit(states, [each for each in node.args if not self._is_self(each)], node.keywords)
            case ast.Call(func=ast.Name(id=name), args=[of, key, *rest]) if name in _BY_NAME and self._is_self(of):
                return self._visit_access_by_name(self._visit(states, key, rest), name, key)
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name)) if self._bases:
                return self._call(self._visit(states, node.args, node.keywords), name, self._bases_after_current())
            case ast.Call():
                return self._visit(states, node.args, node.keywords, node.func)
            case ast.Name() if self._is_self(node) and self._bases:
                raise _UnclearError  # the module itself is passed on
            case _:
                return self._visit(states, *(value for _, value in ast.iter_fields(node)))

    def _maybe_each(self, states: States, parts: list[Any]) -> States:
        """Return the states if these parts run in turn and each may be the last."""
        after = states
        for part in parts:
            after = self._visit(after, part)
            states |= after
        return states

    def _visit_attribute(self, states: States, node: ast.Attribute) -> States:
        if self._is_attribute(node):
            return self._access(states, _CONTEXTS[type(node.ctx)])
        if not self._is_self(node.value):
            return self._visit(states, node.value)
        return self._call(states, node.attr, self._bases)

    def _visit_access_by_name(self, states: States, function: str, name: ast.expr) -> States:
        """Return the states after a call such as `getattr(self, f"layer{i}")`."""
        is_text = isinstance(name, ast.JoinedStr | ast.BinOp | ast.Constant)
        prefix = _PREFIX.match(ast.unparse(name)) if is_text else None
        if not self._bases or (prefix and not self._attribute.startswith(prefix[1])):
            return states  # another module's own attribute, or another name
        if not isinstance(name, ast.Constant):
            raise _UnclearError
        access = "write" if function == "setattr" else "read"
        return self._access(states, access) if name.value == self._attribute else states

    def _access(self, states: States, access: str) -> States:
        return frozenset(_NEXT[access][state] for state in states)

    def _is_attribute(self, node: ast.AST) -> bool:
        """Return whether a node is the attribute."""
        if not isinstance(node, ast.Attribute) or node.attr != self._attribute:
            return False
        return self._is_self(node.value) == bool(self._bases)

    def _is_self(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self._stack[-1][1]

    def _bases_after_current(self) -> tuple[type, ...]:
        """Return the bases after the one that defines the current function."""
        code = self._stack[-1][0].__code__
        for i, base in enumerate(self._bases):
            if any(getattr(_plain(value), "__code__", None) is code for value in vars(base).values()):
                return self._bases[i + 1 :]
        raise _UnclearError

    def _call(self, states: States, name: str, bases: Iterable[type]) -> States:
        """Return the states after a call of a method or property of the user's classes."""
        methods = definitions_in(bases, name)
        function = _plain(methods[0]) if methods else None
        return self.function(states, function) if function is not None else states


def _plain(value: Any) -> FunctionType | None:
    """Return the function inside a property, a method or a decorated function."""
    function = plain_function(value)
    return None if function is None else plain_function(inspect.unwrap(function))
