"""Where the source of a function could draw random numbers: by the names of what it calls, without running it."""

from __future__ import annotations

import ast
import dis
import linecache
import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType

# What carries `Tag.nondeterministic_seeded` in torch's operators, under the names by which Python code calls it.
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

_PYTHONS = getattr(random.random, "__self__", None)  # the generator of Python's functions
_parsing = threading.Lock()  # two threads that parse at once can raise SystemError: python/cpython#106905


@dataclass(frozen=True, slots=True)
class DrawCall:
    """A call in a forward's code that can draw random numbers."""

    code: CodeType
    line: int
    text: str
    gated: bool
    """It mentions `training`, or stands under an `if` that does, or behind one that leaves."""
    host: str = ""
    """Whose generator it draws from, where that is not torch's: `Python's random` or `NumPy`."""


def mentions_draw(code: CodeType) -> bool:
    """Whether a function names something that draws, but for parts of its own: `self.dropout` answers for itself."""
    if any(name.strip("_") in DRAWING_FUNCTIONS for name in code.co_names):
        loaded: object = None
        for step in dis.get_instructions(code):
            draws = isinstance(step.argval, str) and step.argval.strip("_") in DRAWING_FUNCTIONS
            if draws and step.opname.startswith("LOAD") and loaded != code.co_varnames[:1]:
                return True
            loaded = step.argval[-1:] if isinstance(step.argval, tuple) else (step.argval,)
    return any(mentions_draw(constant) for constant in code.co_consts if isinstance(constant, CodeType))


def draw_calls_in(function: FunctionType) -> Iterator[DrawCall]:
    """The calls in its source that can draw."""
    code = function.__code__
    for definition in _definitions_at(code.co_filename).get(code.co_firstlineno, ()):
        for node, gated in _calls(definition, gated=False):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            host = _host(node.func, function)
            draws = name.strip("_") in DRAWING_FUNCTIONS and not _is_submodule(node.func) and not _harmless(name, node)
            if host or draws:
                text = " ".join(ast.unparse(node.func).split())
                yield DrawCall(code, node.func.end_lineno or node.lineno, text, gated, host)


def _host(called: ast.expr, function: FunctionType) -> str:
    """Whose global generator a call draws from, if it is Python's or NumPy's: by what its name stands for."""
    steps: list[str] = []
    while isinstance(called, ast.Attribute):
        steps.append(called.attr)
        called = called.value
    if not isinstance(called, ast.Name):
        return ""
    # A module that a function imports for itself goes by its own name more often than not.
    value = function.__globals__.get(called.id, sys.modules.get(called.id))
    for step in reversed(steps):
        value = vars(value).get(step) if isinstance(value, ModuleType) else None
    generator = getattr(value, "__self__", None) if isinstance(value, MethodType | BuiltinMethodType) else None
    if generator is None:
        return ""
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and generator is getattr(numpy.rand, "__self__", None):
        return NUMPY
    return PYTHON if generator is _PYTHONS else ""


@lru_cache(maxsize=32)
def _definitions_at(file: str) -> dict[int, list[ast.AST]]:
    """The functions and lambdas of a file by the line where their code begins."""
    try:
        with _parsing:
            tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    found: dict[int, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = getattr(node, "decorator_list", [])
            found.setdefault(min([node.lineno, *(d.lineno for d in decorators)]), []).append(node)
    return found


def _calls(node: ast.AST, gated: bool) -> Iterator[tuple[ast.Call, bool]]:
    """Every call beneath a node, and whether the mode decides about it."""
    if isinstance(node, ast.Call):
        yield node, gated or _mentions_training(node)
    if isinstance(node, ast.If | ast.IfExp) and _mentions_training(node.test):
        gated = True
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, gated)
        # `if not self.training: return x` decides about all that follows it in its block.
        gated |= isinstance(child, ast.If) and _mentions_training(child.test) and _leaves(child.body)


def _leaves(block: list[ast.stmt]) -> bool:
    return isinstance(block[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)


def _mentions_training(node: ast.AST) -> bool:
    return any(
        (isinstance(n, ast.Attribute) and n.attr == "training") or (isinstance(n, ast.Name) and n.id == "training")
        for n in ast.walk(node)
    )


def _is_submodule(function: ast.expr) -> bool:
    """`self.dropout(x)`: that module answers for itself."""
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self"


def _harmless(name: str, call: ast.Call) -> bool:
    """A call whose arguments rule out a draw: no dropout asked for, switched off, or a generator of its own."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "scaled_dot_product_attention" and "dropout_p" not in given and len(call.args) < 5:
        return True
    off = [given.get("training"), given.get("train"), given.get("dropout_p")]
    return "generator" in given or any(isinstance(v, ast.Constant) and not v.value and v.value is not None for v in off)
