"""States of the global random generators, in a form that can be compared."""

from __future__ import annotations

import sys
from ctypes import string_at
from operator import eq
from pickle import dumps
from random import getstate
from types import ModuleType

from torch import Generator, Tensor, default_generator

from pytest_evalmode.observe.model_code.draw_calls import NUMPY, PYTHON
from pytest_evalmode.observe.private_api import disable_torch_function
from pytest_evalmode.observe.state import devices

State = list[object]
"""The state of the CPU generator, then those of the generators of the accelerator in use."""
HostState = tuple[object, bytes | None]


def state() -> State:
    """Return the state of torch's global generators, on the CPU and on the accelerator in use.

    Dispatches no operator and no torch function, so user modes do not see it.
    """
    with disable_torch_function():
        cpu = _bytes(default_generator.get_state())
        accelerator = devices.accelerator_in_use()
        return [cpu] if accelerator is None else [cpu, *_states(accelerator)]


def is_unchanged(before: State, now: State) -> bool:
    """Return whether no random number was drawn in between.  A device that was first used since does not count."""
    return all(map(eq, before, now))


def host_state() -> HostState:
    """Return the state of Python's global generator, and of NumPy's if it is in use."""
    numpy = sys.modules.get("numpy.random")
    return getstate(), dumps(numpy.get_state()) if numpy is not None else None


def moved_generators(before: HostState) -> list[str]:
    """Return which libraries' global generators drew since: Python's `random`, NumPy."""
    (python, numpy), (python_now, numpy_now) = before, host_state()
    names = [PYTHON] if python != python_now else []
    if numpy != numpy_now and (numpy is not None or _numpy_has_drawn()):
        names.append(NUMPY)
    return names


def _numpy_has_drawn() -> bool:
    """Return whether NumPy's generator drew since it was created, which happens on first use."""
    numpy = sys.modules["numpy.random"]
    (_, _, *position), (_, _, *initial) = (each.get_state() for each in (numpy, numpy.RandomState()))
    return bool(position != initial)


def _bytes(state: Tensor) -> bytes:
    return string_at(state.data_ptr(), state.numel())


def _states(accelerator: ModuleType) -> list[object]:
    """Return the states of an accelerator's generators: seed and offset, which CUDA, XPU and MPS keep on the host.

    So this does not wait for the device.  During a graph capture they cannot be read
    (https://github.com/pytorch/pytorch/issues/83148); only the replay draws.
    """
    try:
        # CUDA and XPU have one per device; MPS has one, without a name.
        generators = getattr(accelerator, "default_generators", ())
        return [_state(generator) for generator in generators] or [_bytes(accelerator.get_rng_state())]
    except (AttributeError, RuntimeError):
        return []


def _state(generator: Generator) -> object:
    """Return seed and offset, which is cheap, or the whole state of a generator without an offset."""
    try:
        return generator.initial_seed(), generator.get_offset()
    except RuntimeError:
        return _bytes(generator.get_state())
