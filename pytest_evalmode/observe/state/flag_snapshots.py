"""The flags, gradients and hooks of shared models, and torch's global state, before and after -> Leak."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from types import CodeType

import torch
from torch import nn
from torch.backends import cudnn
from torch.backends.cuda import matmul
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from pytest_evalmode.observe import modules
from pytest_evalmode.trace import Leak

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

_ALL_HOOKS: Callable[[nn.Module], Iterable[Mapping[int, object]]] = attrgetter(*_HOOKS)
_CPU = torch.device("cpu")
_function_modes: Callable[[], list[object]] = _get_current_function_mode_stack

Flags = dict[str, str | dict[int, str]]
"""How something is set, by name; hooks by the numbers that torch gives them."""


@dataclass(slots=True)
class FlagTracker:
    """How something was set, a model or torch itself."""

    window_start: Flags
    """When the window began."""
    latest: Flags
    """When the part of the window began that runs now."""
    before_change: Flags = field(default_factory=dict)
    """When it was set for the first time, but for what was set in a pause."""
    session_start: Flags = field(default_factory=dict)
    """When the session began, where that is remembered: who puts that back repairs what another left."""

    def find_leaks(self, model: str | None, now: Flags, own_hooks: Container[int] = ()) -> list[Leak]:
        """What has been set otherwise in this part of the window; another begins.  Its `own` hooks do not count."""
        self.window_start, self.latest, self.before_change, now = (
            _without(own_hooks, each) for each in (self.window_start, self.latest, self.before_change, now)
        )
        found = list(find_leaks(model, self.latest, now))
        for leak in found:
            self.before_change.setdefault(leak.name, self.latest[leak.name])
        self.latest = now
        return found

    def restored(self) -> set[str]:
        """What is now as it was at first, or before it was set, or when the session began."""
        earlier = self.window_start, self.before_change, self.session_start
        return {name for name, is_ in self.latest.items() if is_ in [flags.get(name) for flags in earlier]}


def read_model_flags(module: nn.Module, skip: Container[int] = ()) -> Flags:
    """How a model is set: by name, what each of its modules and parameters says of itself, but for parts to `skip`."""
    flags: Flags = {}
    for path, part in modules.walk(module, skip):
        prefix = f"{path}." if path else ""
        training = modules.training_flag(part)
        if training is not None:
            flags[f"{prefix}training"] = str(training)
        for hooks in _HOOKS:
            flags[f"{prefix}{hooks.lstrip('_')}"] = {
                key: getattr(hook, "__qualname__", type(hook).__name__) for key, hook in _table(part, hooks).items()
            }
        for name, parameter in part._parameters.items():
            if parameter is not None:
                flags[f"{prefix}{name}.requires_grad"] = str(parameter.requires_grad)
                flags[f"{prefix}{name}.grad"] = _grad(parameter)
    return flags


def read_global_flags(names: Iterable[str] = ()) -> Flags:
    """What torch keeps for the whole process, and for this thread: all of it, or what is named."""
    return {name: _read(_GLOBALS[name]) for name in names or _GLOBALS}


def find_leaks(model: str | None, before: Flags, now: Flags) -> Iterator[Leak]:
    """What is otherwise than it was; a module or parameter that has come or gone is no leak but a change of state."""
    for name, was in before.items():
        is_ = now.get(name, was)
        if was != is_:
            yield Leak(model, name, _told(was), _told(is_))


def hooks_of(parts: Iterable[nn.Module]) -> dict[int, object]:
    """The hooks of modules, by the numbers that torch gives them: no two of a process have the same."""
    filled = filter(None, chain.from_iterable(map(_tables, parts)))  # of thousands of tables next to none are
    return {key: hook for table in filled for key, hook in table.items()}


def hooks_changed_by_model(
    before: Mapping[int, object], parts: Iterable[nn.Module], is_user: Callable[[CodeType], bool]
) -> set[int]:
    """The hooks that came or went in a forward by no doing of the test's.

    A lazy module takes away its own once it has its shape; a library puts some on as its model first runs.
    """
    now = hooks_of(parts)
    came = {key for key in now.keys() - before.keys() if (code := code_of(now[key])) is not None and not is_user(code)}
    return came | (before.keys() - now.keys())


def code_of(hook: object) -> CodeType | None:
    """The code of a function or method, of one beneath a partial one, or of an object that can be called."""
    while isinstance(hook, partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return getattr(function, "__code__", None) or getattr(type(hook).__call__, "__code__", None)


def _tables(part: nn.Module) -> Iterable[Mapping[int, object]]:
    try:
        return _ALL_HOOKS(part)
    except AttributeError:  # one of another torch's, or scripted
        return [_table(part, name) for name in _HOOKS]


def _table(part: nn.Module, name: str) -> Mapping[int, object]:
    return getattr(part, name, None) or {}


def _without(own: Container[int], flags: Flags) -> Flags:
    return {
        name: value if isinstance(value, str) else {key: hook for key, hook in value.items() if key not in own}
        for name, value in flags.items()
    }


def _told(value: str | dict[int, str]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{name} #{key}" for key, name in value.items()) or "none"


def _grad(parameter: torch.Tensor) -> str:
    grad = parameter.grad if parameter.is_leaf else None
    if grad is None:
        return "None"
    version = "inference" if grad.is_inference() else f"version {grad._version}"
    return f"tensor of shape {tuple(grad.shape)}, {version}"


def _read(flag: Callable[[], object]) -> str:
    try:
        return str(flag()).removeprefix("torch.")
    except RuntimeError:
        return "unreadable"  # torch refuses to tell an old flag once its new one is set


def _default_device() -> object:
    """As `torch.get_default_device` finds it, which would look up `torch.device`: a test may have patched that."""
    return next((mode.device for mode in _function_modes() if isinstance(mode, DeviceContext)), _CPU)


_GLOBALS: dict[str, Callable[[], object]] = {
    "grad_mode": torch.is_grad_enabled,
    "inference_mode": torch.is_inference_mode_enabled,
    "default_dtype": torch.get_default_dtype,
    "default_device": _default_device,
    "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "deterministic_algorithms_warn_only": torch.is_deterministic_algorithms_warn_only_enabled,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cudnn.enabled": partial(getattr, cudnn, "enabled"),
    "cudnn.benchmark": partial(getattr, cudnn, "benchmark"),
    "cudnn.deterministic": partial(getattr, cudnn, "deterministic"),
    "cudnn.allow_tf32": partial(getattr, cudnn, "allow_tf32"),
    "cuda.matmul.allow_tf32": partial(getattr, matmul, "allow_tf32"),
    "autocast.cpu": partial(torch.is_autocast_enabled, "cpu"),
    "autocast.cuda": partial(torch.is_autocast_enabled, "cuda"),
    "autocast.cpu_dtype": partial(torch.get_autocast_dtype, "cpu"),
    "autocast.cuda_dtype": partial(torch.get_autocast_dtype, "cuda"),
    "threads": torch.get_num_threads,
    "anomaly_mode": torch.is_anomaly_enabled,
}
