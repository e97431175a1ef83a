"""Calls in the source of a function that may draw random numbers, found by their names without running the function."""

from __future__ import annotations

import ast
import dis
import linecache
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType

from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pytest_evalmode import forks
from pytest_evalmode.observe.model_code.static_values import UNKNOWN, value_of

# Operators that torch tags as `nondeterministic_seeded`, and functions that call them, by the names that code uses.
DRAWING_FUNCTIONS = frozenset(
    """
    alpha_dropout bernoulli binomial cauchy dropout exponential feature_alpha_dropout feature_dropout geometric gru
    log_normal lstm multinomial native_dropout normal poisson rand rand_like randint randint_like randn randn_like
    random randperm rnn_relu rnn_tanh rrelu rrelu_with_noise scaled_dot_product_attention uniform
    dropout1d dropout2d dropout3d fractional_max_pool2d fractional_max_pool3d gumbel_softmax
    multi_head_attention_forward kaiming_normal kaiming_uniform orthogonal sparse trunc_normal xavier_normal
    xavier_uniform sample rsample manual_seed seed set_rng_state
    """.split()
)
PYTHON = "Python's random"
NUMPY = "NumPy"

_PYTHON_GENERATOR = getattr(random.random, "__self__", None)
_lock = forks.new_lock(sys.modules[__name__])
"""Held while code is parsed: two threads that parse at once can raise SystemError (python/cpython#106905)."""


@dataclass(frozen=True, slots=True)
class DrawCall:
    """A call in a forward's code that may draw random numbers."""

    code: CodeType
    line: int
    text: str
    gated: bool
    """It depends on the mode: it mentions `training`, or is under an `if` that does, or after one that returns."""
    optional: bool = False
    """It draws from a given generator unless that is None."""
    host: str = ""
    """The library whose global generator it uses, if that is not torch: `Python's random` or `NumPy`."""

    @property
    def is_certain(self) -> bool:
        """Whether it draws whenever it runs."""
        return not (self.gated or self.optional)


def mentions_draw(code: CodeType) -> bool:
    """Return whether a function names a drawing function.

    An attribute of `self` does not count: `self.dropout` is a submodule, which has traits of its own.
    """
    if any(name.strip("_") in DRAWING_FUNCTIONS for name in code.co_names):
        loaded: object = None
        for step in dis.get_instructions(code):
            draws = isinstance(step.argval, str) and step.argval.strip("_") in DRAWING_FUNCTIONS
            if draws and step.opname.startswith("LOAD") and loaded != code.co_varnames[:1]:
                return True
            loaded = step.argval[-1:] if isinstance(step.argval, tuple) else (step.argval,)
    return any(mentions_draw(constant) for constant in code.co_consts if isinstance(constant, CodeType))


def draw_calls_in(function: FunctionType, attributes: Mapping[str, object]) -> Iterator[DrawCall]:
    """Yield the calls in the source of a function that may draw, given the attributes of `self`."""
    code = function.__code__
    if all(_drawing_library(call, function) is None for call in _calls_in(code)):
        return  # most functions end here
    for node, gated in chain.from_iterable(_nodes(each, attributes, gated=False) for each in definitions_of(code)):
        if not isinstance(node, ast.Call) or (library := _drawing_library(node, function)) is None:
            continue
        called = _resolve(node.func, function)
        if library or builds_drawing_module(called) or not _is_harmless(called, node, attributes):
            text = " ".join(ast.unparse(node.func).split())
            given = [keyword.value for keyword in node.keywords if keyword.arg == "generator"]
            optional = any(value_of(value, attributes) is UNKNOWN for value in given)
            is_gated = gated or _mentions_training(node)
            yield DrawCall(code, node.func.end_lineno or node.lineno, text, is_gated, optional, library)


@lru_cache(maxsize=1024)
def _calls_in(code: CodeType) -> Sequence[ast.Call]:
    """Return all calls in the source of a code object."""
    return [node for node in nodes_of(code) if isinstance(node, ast.Call)]


def _drawing_library(call: ast.Call, function: FunctionType) -> str | None:
    """Return the library whose generator a call may use, "" for torch, or None if it is no drawing function."""
    called = _resolve(call.func, function)
    host = _host_of(called)
    names_draw = _name_of(call).strip("_") in DRAWING_FUNCTIONS and not _is_of_self(call.func)
    return host if host or names_draw or builds_drawing_module(called) else None


def _name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@lru_cache(maxsize=1024)
def names_in(code: CodeType) -> Mapping[str, bool]:
    """Return the names in the source of a code object, and whether the mode decides wherever one is mentioned."""
    names: dict[str, bool] = {}
    for definition in definitions_of(code):
        for node, gated in _nodes(definition, {}, gated=False):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                names[name] = gated and names.get(name, True)
    return names


def definitions_of(code: CodeType) -> list[ast.AST]:
    """Return the source of a code object, parsed; several definitions if these begin on the same line."""
    return _definitions_by_line(code.co_filename).get(code.co_firstlineno, [])


def nodes_of(code: CodeType) -> Iterator[ast.AST]:
    """Return all nodes in the source of a code object."""
    return chain.from_iterable(map(ast.walk, definitions_of(code)))


def builds_drawing_module(called: object) -> bool:
    """Return whether a called object is a type of modules that initializes its parameters at random."""
    if not (isinstance(called, type) and issubclass(called, nn.Module)):
        return False
    methods = (vars(base).get(name) for base in called.__mro__ for name in ("__init__", "reset_parameters"))
    return any(isinstance(method, FunctionType) and mentions_draw(method.__code__) for method in methods)


def _resolve(called: ast.expr, function: FunctionType) -> object:
    """Return the object that a dotted name refers to in a function's globals, or None."""
    attributes: list[str] = []
    while isinstance(called, ast.Attribute):
        attributes.append(called.attr)
        called = called.value
    if not isinstance(called, ast.Name):
        return None
    # A Python module that a function imports itself is not in its globals, but usually has the same name.
    value = function.__globals__.get(called.id, sys.modules.get(called.id))
    for attribute in reversed(attributes):
        value = vars(value).get(attribute) if isinstance(value, ModuleType) else None
    return value


def _host_of(value: object) -> str:
    """Return `PYTHON` or `NUMPY` if a called object uses that library's global generator."""
    if not isinstance(value, MethodType | BuiltinMethodType):
        return ""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and value.__self__ is getattr(numpy.rand, "__self__", UNKNOWN):
        return NUMPY
    return PYTHON if value.__self__ is _PYTHON_GENERATOR else ""


@lru_cache(maxsize=32)
def _definitions_by_line(file: str) -> dict[int, list[ast.AST]]:
    """Return the functions and lambdas of a file by the line on which their code begins."""
    try:
        with _lock:
            tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    definitions: dict[int, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = getattr(node, "decorator_list", [])
            definitions.setdefault(min([node.lineno, *(d.lineno for d in decorators)]), []).append(node)
    return definitions


def _nodes(node: ast.AST, attributes: Mapping[str, object], *, gated: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield a node and all below it that the attributes of `self` do not rule out, and whether the mode decides it."""
    yield node, gated
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If | ast.IfExp):
        gated |= _mentions_training(node.test)
        value = value_of(node.test, attributes)
        blocks = (node.body, node.orelse) if value is UNKNOWN else (node.body,) if value else (node.orelse,)
        children = [node.test, *(each for block in blocks for each in (block if isinstance(block, list) else [block]))]
    for child in children:
        yield from _nodes(child, attributes, gated=gated)
        # `if not self.training: return x` decides about all statements that follow it in its block.
        if isinstance(child, ast.If) and isinstance(child.body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break):
            gated |= _mentions_training(child.test)
            if value_of(child.test, attributes) not in (UNKNOWN, False, None, 0):
                break


def _mentions_training(node: ast.AST) -> bool:
    return any("training" in (getattr(each, "attr", ""), getattr(each, "id", "")) for each in ast.walk(node))


def _is_of_self(node: ast.expr | None) -> bool:
    """Return whether a node is an attribute of `self`, such as a submodule, whose own forward is checked."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _is_harmless(called: object, call: ast.Call, attributes: Mapping[str, object]) -> bool:
    """Return whether the arguments of a call rule out a draw: dropout is off, or a generator is passed."""
    name = _name_of(call)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if not any(isinstance(each, ast.Starred) for each in call.args):
        given = {**dict(zip(_parameters_of(called), call.args, strict=False)), **given}
    if name == "scaled_dot_product_attention" and "dropout_p" not in given:
        return True
    generator = given.get("generator")
    if isinstance(generator, ast.Attribute) and _is_of_self(generator):
        return attributes.get(generator.attr, UNKNOWN) is not None
    if generator is not None and not isinstance(generator, ast.Constant | ast.Name):
        return True
    off = [value_of(given.get(argument), attributes) for argument in ("training", "train", "dropout_p")]
    if "dropout" in name:
        off.append(value_of(given.get("p"), attributes))
    return any(value is not None and not value for value in off)


def _parameters_of(called: object) -> tuple[str, ...]:
    """Return the names of a function's parameters, or none if it is unknown."""
    if called is scaled_dot_product_attention:
        return "query", "key", "value", "attn_mask", "dropout_p"
    return called.__code__.co_varnames[: called.__code__.co_argcount] if isinstance(called, FunctionType) else ()
