"""The state of torch's global random generators, in a form that can be compared."""

from __future__ import annotations

import sys
from ctypes import string_at
from operator import eq
from pickle import dumps
from random import getstate
from types import ModuleType

from torch import Generator, Tensor

from pytest_evalmode.observe.source.draw_calls import NUMPY, PYTHON
from pytest_evalmode.observe.state import devices
from pytest_evalmode.observe.state.generators import engine

State = tuple[bytes, *tuple[object, ...]]
"""What can be compared, of each generator: the CPU's, then those of the accelerator in use."""
HostState = tuple[object, bytes | None]


def state() -> State:
    """The state of the CPU generator and of those of the accelerator in use.

    Reads memory and dispatches no operator, so a mode of the user's does not see it.
    """
    cpu = engine.state()
    accelerator = devices.accelerator_in_use()
    return (cpu,) if accelerator is None else (cpu, *_states(accelerator))


def is_unchanged(before: State, now: State) -> bool:
    """Whether none has moved.  Those of a device that came into use in between have no before."""
    return before == now or (engine.same(before[0], now[0]) and all(map(eq, before[1:], now[1:])))


def host_state() -> HostState:
    """The state of Python's own generator, and of NumPy's where it is in use."""
    numpy = sys.modules.get("numpy.random")
    return getstate(), dumps(numpy.get_state()) if numpy is not None else None


def moved_generators(before: HostState) -> list[str]:
    """Whose generators have moved since."""
    (python, numpy), (python_now, numpy_now) = before, host_state()
    names = [PYTHON] if python != python_now else []
    if numpy != numpy_now and (numpy is not None or _numpy_has_drawn()):
        names.append(NUMPY)
    return names


def _numpy_has_drawn() -> bool:
    """Whether NumPy's generator has moved since it was made: NumPy makes it when it is first used."""
    numpy = sys.modules["numpy.random"]
    (_, _, *place), (_, _, *beginning) = (each.get_state() for each in (numpy, numpy.RandomState()))
    return bool(place != beginning)


def _bytes(state: Tensor) -> bytes:
    return string_at(state.data_ptr(), state.numel())


def _states(accelerator: ModuleType) -> list[object]:
    """What the generators of an accelerator hold: seed and offset, which CUDA, XPU and MPS all keep on the host.

    So nothing waits for the device.  While its work is captured as a graph they do not tell
    (https://github.com/pytorch/pytorch/issues/83148); it is a replay that draws.
    """
    try:
        # Of these CUDA and XPU have one for each device; MPS has one, which it does not name.
        generators = getattr(accelerator, "default_generators", ())
        return [_state(generator) for generator in generators] or [_bytes(accelerator.get_rng_state())]
    except (AttributeError, RuntimeError):
        return []


def _state(generator: Generator) -> object:
    """It is asked twice a forward, and where it counts its offset, that and the seed are all there is."""
    try:
        return generator.initial_seed(), generator.get_offset()
    except RuntimeError:
        return _bytes(generator.get_state())
