"""Two runs of a function under different global seeds, and the lines that drew random numbers in between."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from pytest_evalmode.evaluation import inference
from pytest_evalmode.guards import guard
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import generators
from pytest_evalmode.probes.output_differences import Tolerance, first_difference
from pytest_evalmode.trace import Site


def assert_function_repeatable(
    function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], tolerance: Tolerance | None
) -> None:
    """Assert that a function returns the same result under two global seeds, in eval mode and with autograd off."""
    models = [value for value in (*args, *named.values()) if isinstance(value, nn.Module)]
    try:
        copies = {id(model): copy.deepcopy(model) for model in models}
    except Exception as error:
        raise TypeError("assert_repeatable(): cannot copy a model among the arguments; pass a copy yourself") from error
    args = tuple(copies.get(id(value), value) for value in args)
    named = {name: copies.get(id(value), value) for name, value in named.items()}
    with ExitStack() as stack:
        stack.enter_context(_kept_generators())
        stack.enter_context(torch.no_grad())
        for model in copies.values():
            stack.enter_context(inference(model))
        if not copies:
            stack.enter_context(guard())
        _seed(0)
        first = dict(_leaves("", function(*args, **named)))
        _seed(1)
        with _recorded_draws() as lines:
            second = dict(_leaves("", function(*args, **named)))
        difference = _first_difference(first, second, tolerance)
        if difference is not None:
            raise AssertionError(f"the result differs in a second run with another seed: {difference}; {_who(lines)}")


def _who(lines: Mapping[Site, None]) -> str:
    if not lines:
        return "no user code drew random numbers on this thread (state, order or time may have changed)"
    return "random numbers were drawn at " + "; ".join(f"{line}  {line.source}" for line in list(lines)[:_MAX_LINES])


_MAX_LINES = 5


def _leaves(path: str, value: Any) -> Iterator[tuple[str, object]]:
    """Yield the values in a result with their paths, copies of tensors and arrays."""
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, bool | int | float | complex):
        yield path, torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        yield f"len({path or 'result'})", len(value)
        for i, item in enumerate(value):
            yield from _leaves(f"{path}[{i}]", item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _leaves(f"{path}.{name}", getattr(value, name))
    elif hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "O") in "biufc":
        yield path, torch.tensor(value)
    else:
        yield path, copy.copy(value)


def _first_difference(
    first: Mapping[str, object], second: Mapping[str, object], tolerance: Tolerance | None
) -> str | None:
    """Return the path of the first difference and how large it is, or None."""
    for path, old in first.items():
        new = second.get(path)
        where = f"result{path}" if not path.startswith("len(") else path
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            how = first_difference({"": old}, {"": new}, tolerance)
            if how is not None:
                values = f"{old.item()} -> {new.item()}" if old.numel() == new.numel() == 1 else how
                return f"{where} {values}"
        elif type(old) is not type(new) or old != new:
            return f"{where} {old!r} -> {new!r}"
    added = [path for path in second if path not in first]
    return f"result{added[0]} is new" if added else None


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(seed)


@contextmanager
def _kept_generators() -> Iterator[None]:
    """Restore the global generators of torch, Python and NumPy afterwards."""
    numpy = sys.modules.get("numpy.random")
    python_state, numpy_state = random.getstate(), numpy.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.set_state(numpy_state)


@contextmanager
def _recorded_draws() -> Iterator[dict[Site, None]]:
    """Collect the user's lines on this thread that call a function which moves a global generator."""
    lines: dict[Site, None] = {}
    user_lines, state = UserLines(), generators.state()
    python = getattr(random.random, "__self__", None)

    def add(frame: FrameType) -> None:
        line = user_lines.find_line(frame)
        if line is not None:
            lines[line] = None

    def record(frame: FrameType, event: str, called: Any) -> None:
        nonlocal state
        if event == "c_return" and not frame.f_globals.get("__name__", "").startswith("pytest_evalmode."):
            now = generators.state()
            if getattr(called, "__self__", None) is python or not generators.is_unchanged(state, now):
                state = now
                add(frame)

    before = sys.getprofile()
    with _observed_numpy(add):
        sys.setprofile(record)
        try:
            yield lines
        finally:
            sys.setprofile(before)


@contextmanager
def _observed_numpy(add: Callable[[FrameType], None]) -> Iterator[None]:
    """Report the calls of NumPy's global functions, which are compiled and show no events."""
    numpy = sys.modules.get("numpy.random")
    generator = getattr(getattr(numpy, "rand", None), "__self__", None)
    originals = {
        name: value
        for name, value in (vars(numpy).items() if numpy is not None else ())
        if generator is not None and getattr(value, "__self__", None) is generator
    }

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            add(sys._getframe(1))
            return function(*args, **named)

        return call

    try:
        for name, value in originals.items():
            setattr(numpy, name, wrapped(value))
        yield
    finally:
        for name, value in originals.items():
            setattr(numpy, name, value)
