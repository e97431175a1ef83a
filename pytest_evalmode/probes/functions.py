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
from pytest_evalmode.probes.nested_tensors import copy_tensor, leaves
from pytest_evalmode.probes.output_differences import Tolerance, tensor_difference
from pytest_evalmode.trace import Site

_MAX_LINES = 5


def assert_function_repeatable(
    function: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], tolerance: Tolerance
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
        _restore_generators_at_end(stack)
        stack.enter_context(torch.no_grad())
        for model in copies.values():
            stack.enter_context(inference(model))
        if not copies:
            stack.enter_context(guard())
        _seed(0)
        first = {path: _comparable(leaf) for path, leaf in leaves(function(*args, **named))}
        _seed(1)
        with _recorded_draws() as lines:
            result = function(*args, **named)
        second = {path: _comparable(leaf) for path, leaf in leaves(result)}
        difference = _first_difference(first, second, tolerance)
        if difference is not None:
            raise AssertionError(f"the result differs in a second run with another seed: {difference}; {_who(lines)}")


def _who(lines: Mapping[Site, None]) -> str:
    if not lines:
        return "no user code drew random numbers on this thread (state, order or time may have changed)"
    return "random numbers were drawn at " + "; ".join(f"{line}  {line.source}" for line in list(lines)[:_MAX_LINES])


def _comparable(value: Any) -> object:
    """Return a copy of a value, as a tensor if it is a float or an array of numbers."""
    if isinstance(value, Tensor):
        return copy_tensor(value)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    is_array = hasattr(value, "__array__") and getattr(getattr(value, "dtype", None), "kind", "O") in "biufc"
    return torch.tensor(value) if is_array else copy.copy(value)


def _first_difference(first: Mapping[str, object], second: Mapping[str, object], tolerance: Tolerance) -> str | None:
    """Return the path of the first difference and how large it is, or None."""
    for path in {**first, **second}:
        if path not in first or path not in second:
            return f"result{path} is {'new' if path in second else 'missing'}"
        old, new = first[path], second[path]
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            how = tensor_difference(old, new, tolerance)
            if how is not None:
                values = f"{old.item()} -> {new.item()}" if old.numel() == new.numel() == 1 else how
                return f"result{path} {values}"
        elif type(old) is not type(new) or old != new:
            return f"result{path} {old!r} -> {new!r}"
    return None


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed(seed)


def _restore_generators_at_end(stack: ExitStack) -> None:
    """Restore the global generators of torch, Python and NumPy when the stack is closed."""
    stack.callback(random.setstate, random.getstate())
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        stack.callback(numpy.set_state, numpy.get_state())
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    stack.enter_context(torch.random.fork_rng(devices=devices))


@contextmanager
def _recorded_draws() -> Iterator[dict[Site, None]]:
    """Collect the user's lines on this thread that moved a global generator: its state is read after each line."""
    lines: dict[Site, None] = {}
    user_lines = UserLines()
    running: Site | None = None
    torch_state, host_state = generators.state(), generators.host_state()

    def record(frame: FrameType, event: str, _: object) -> Any:
        nonlocal running, torch_state, host_state
        if event == "call" and not user_lines.is_user_code(frame.f_code):
            return None
        now, host_now = generators.state(), generators.host_state()
        if running is not None and not (generators.is_unchanged(torch_state, now) and host_now == host_state):
            lines[running] = None
        torch_state, host_state = now, host_now
        running = user_lines.find_line(frame if event != "return" else frame.f_back)
        return record

    before = sys.gettrace()
    sys.settrace(record)
    try:
        yield lines
    finally:
        sys.settrace(before)
