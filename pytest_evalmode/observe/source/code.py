"""What the code of a forward says: whether it depends on the mode, and where it could draw random numbers.

Read from the functions that a forward can reach, never by running them: methods of the type and of its bases other than
`nn.Module`, and the plain functions that these name.
"""

from __future__ import annotations

import ast
import dis
import inspect
import linecache
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from pytest_evalmode.observe.modules import home

# What carries `Tag.nondeterministic_seeded` in torch's operators, under the names by which Python code calls it.
DRAWS = frozenset(
    """
    alpha_dropout bernoulli binomial cauchy dropout exponential feature_alpha_dropout feature_dropout geometric gru
    log_normal lstm multinomial native_dropout normal poisson rand rand_like randint randint_like randn randn_like
    random randperm rnn_relu rnn_tanh rrelu rrelu_with_noise scaled_dot_product_attention uniform
    dropout1d dropout2d dropout3d fractional_max_pool2d fractional_max_pool3d gumbel_softmax
    multi_head_attention_forward kaiming_normal kaiming_uniform orthogonal sparse trunc_normal xavier_normal
    xavier_uniform sample rsample manual_seed seed set_rng_state
    """.split()
)
_NO_GRAD = frozenset({"no_grad", "inference_mode", "set_grad_enabled"})
PYTHON = "Python's random"
NUMPY = "NumPy"

_CALLS = frozenset({"__call__", "_call_impl", "_wrapped_call_impl", "_wrapped_call"})
_NOT_FORWARD = frozenset({"__init__", "train", "eval", "training"})
_MOST_FUNCTIONS = 400
_PYTHONS = getattr(random.random, "__self__", None)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the forward of a type does, as far as its code tells."""

    sensitive: bool
    """It reads `self.training`."""
    may_draw: bool
    """It names something that draws from a generator."""
    stops_grad: bool
    """It turns autograd off by itself."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A call in a forward's code that can draw random numbers."""

    code: CodeType
    line: int
    text: str
    gated: bool
    """It mentions `training`, or stands under an `if` that does, or behind one that leaves."""
    host: str = ""
    """Whose generator it draws from, where that is not torch's: `Python's random` or `NumPy`."""


_parsing = threading.Lock()  # two threads that parse at once can raise SystemError: python/cpython#106905

_traits: WeakKeyDictionary[type[nn.Module], Traits] = WeakKeyDictionary()
_read_from: WeakKeyDictionary[type[nn.Module], ref[FunctionType]] = WeakKeyDictionary()
"""The forwards that they were read from; a strong reference would keep the type alive."""


def traits(module: nn.Module) -> Traits:
    """The traits of a module's type; of the module itself where it carries a forward of its own."""
    return _read(type(module), *_forwards(module)) if "forward" in vars(module) else traits_of(type(module))


def traits_of(kind: type[nn.Module]) -> Traits:
    """The traits of a type, read once."""
    known = _traits.get(kind)
    if known is None:
        forward = inspect.getattr_static(kind, "forward")
        known = _traits[kind] = _read(kind, forward, *own_calls(kind))
        if _function(forward):
            _read_from[kind] = ref(forward)
    return known


def own_calls(kind: type[nn.Module]) -> list[FunctionType]:
    """What a type and its bases put in the place of `nn.Module.__call__`, and that does not come to it."""
    calls = [call for call in _definitions(kind, "__call__") if goes_past_module(call)]
    return [inspect.unwrap(call) for call in calls]


def goes_past_module(call: object) -> bool:
    """Whether this is a `__call__` that does not come to that of `nn.Module`, as far as its code tells."""
    function = inspect.unwrap(call) if callable(call) else None
    return isinstance(function, FunctionType) and _CALLS.isdisjoint(_names(function.__code__))


def forget_replaced(kinds: Iterable[type[nn.Module]]) -> None:
    """Let types be read anew whose forward has been replaced, as tests patch it and put it back."""
    for kind in kinds:
        known = _read_from.get(kind)
        forward = next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)
        if kind in _traits and (None if known is None else known()) is not _function(forward):
            del _traits[kind]
            _read_from.pop(kind, None)


def draws(module: nn.Module) -> list[Draw]:
    """The calls that may have drawn, the likeliest first: one that does not ask for the mode before one that does."""
    given = [*vars(module).values(), *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    given = list(filter(_function, given))
    starts = (*given, *_forwards(module))
    functions = list(chain.from_iterable(_reachable(type(module), start) for start in starts))
    found = dict.fromkeys(draw for function in functions for draw in _draws_of(function))
    if not any("training" in _names(function.__code__) for function in functions):
        # A helper may ask for the mode: nobody tells it.
        found = {replace(draw, gated=False): None for draw in found}
    return sorted(found, key=lambda draw: draw.gated)


def _forwards(module: nn.Module) -> list[Any]:
    """The forward as it lies there (that of a traced module is a descriptor, which is not to be asked).

    Where a module carries one of which nothing tells what it calls, a mock, the one of its type too.
    """
    kind = type(module)
    own, of_type = vars(module).get("forward"), [inspect.getattr_static(kind, "forward"), *own_calls(kind)]
    if own is None:
        return of_type
    function = _plain(own)
    return [own, *of_type] if function is None or hasattr(function, "mock") else [own]


def _read(owner: type[nn.Module], *forwards: Any) -> Traits:
    names: set[str] = set()
    may_draw = stops_grad = False
    for function in chain.from_iterable(_reachable(owner, forward) for forward in forwards):
        names |= _names(function.__code__)
        may_draw |= _names_a_draw(function.__code__)
        # A context manager used as a decorator runs in a wrapper of torch's own.
        stops_grad |= function.__code__.co_filename.endswith("_contextlib.py")
    return Traits(
        sensitive="training" in names,
        may_draw=may_draw,
        # Torch's own layers do so only where they set up their weights.
        stops_grad=not home(owner).startswith("torch.nn.") and (stops_grad or not names.isdisjoint(_NO_GRAD)),
    )


def _reachable(owner: type[nn.Module], forward: Any) -> Iterator[FunctionType]:
    """The functions that a forward can come to, breadth first."""
    waiting: list[Any] = [forward]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_FUNCTIONS:
        value = waiting.pop(0)
        if isinstance(value, partial):
            waiting.append(getattr(value, "__wrapped__", None))
        function = _plain(value)
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        yield function
        waiting.append(getattr(function, "__wrapped__", None))
        waiting.append(getattr(getattr(function, "mock", None), "side_effect", None))
        waiting.extend(cell.cell_contents for cell in function.__closure__ or () if _filled(cell))
        names = _names(function.__code__)
        for name in sorted(names - _NOT_FORWARD):
            methods = _definitions(owner, name)
            waiting.extend(methods if "super" in names else methods[:1])
            helper = function.__globals__.get(name)
            if _function(helper) and not home(helper).startswith("torch."):
                waiting.append(helper)


def _plain(value: Any) -> FunctionType | None:
    """The function beneath a partial one, a method, a property or a static method."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    return _function(value)


def _function(value: Any) -> FunctionType | None:
    return value if type(value) is FunctionType else None  # a mock with its spec passes for one


def _filled(cell: Any) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType | MethodType)
    except ValueError:
        return False


def _definitions(owner: type[nn.Module], name: str) -> list[Any]:
    """What a type and its bases call by this name, unbound and without calling any descriptor.

    A mixin may stand behind `nn.Module`.
    """
    bases = [base for base in owner.__mro__ if base is not nn.Module and base is not object]
    return [base.__dict__[name] for base in bases if name in base.__dict__]


def _names(code: CodeType) -> set[str]:
    """The globals and attributes that a function names, in its inner functions too; one attribute by a string."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
        elif constant == "training" and "getattr" in names:
            names.add(constant)
    return names


def _names_a_draw(code: CodeType) -> bool:
    """Whether a function names something that draws, but for parts of its own: `self.dropout` answers for itself."""
    if any(name.strip("_") in DRAWS for name in code.co_names):
        loaded: object = None
        for step in dis.get_instructions(code):
            draws = isinstance(step.argval, str) and step.argval.strip("_") in DRAWS
            if draws and step.opname.startswith("LOAD") and loaded != code.co_varnames[:1]:
                return True
            loaded = step.argval[-1:] if isinstance(step.argval, tuple) else (step.argval,)
    return any(_names_a_draw(constant) for constant in code.co_consts if isinstance(constant, CodeType))


def _draws_of(function: FunctionType) -> Iterator[Draw]:
    code = function.__code__
    for definition in _definitions_at(code.co_filename).get(code.co_firstlineno, ()):
        for node, gated in _calls(definition, gated=False):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            host = _host(node.func, function)
            draws = name.strip("_") in DRAWS and not _is_submodule(node.func) and not _harmless(name, node)
            if host or draws:
                text = " ".join(ast.unparse(node.func).split())
                yield Draw(code, node.func.end_lineno or node.lineno, text, gated, host)


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
