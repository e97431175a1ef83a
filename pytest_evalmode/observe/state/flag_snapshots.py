"""Flags, gradients and hooks of shared models, torch's global state, and which of them leaked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from types import CodeType

import torch
from torch import nn
from torch.backends import cudnn
from torch.backends.cuda import matmul

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.private_api import HOOK_TABLES, DeviceContext, function_modes
from pytest_evalmode.trace import FlagValue, Hooks, Leak

_ALL_HOOKS: Callable[[nn.Module], Collection[Mapping[int, object]]] = attrgetter(*HOOK_TABLES)
_HOOKS = tuple(name.lstrip("_") for name in HOOK_TABLES)
_CPU = torch.device("cpu")

Flags = dict[str, FlagValue]
"""Values by name."""


@dataclass(slots=True)
class FlagTracker:
    """The flags of a model, or torch's global ones, at several moments of a window."""

    window_start: Flags
    latest: Flags
    """The flags when they were last compared, or when the last pause ended."""
    before_change: Flags = field(default_factory=dict)
    """For each flag that changed outside of pauses: its value before the first change."""
    session_start: Flags = field(default_factory=dict)
    """The flags when the session began, if known.  Restoring these values is not a leak."""

    def find_leaks(self, model: str | None, now: Flags, own_hooks: Collection[int] = ()) -> list[Leak]:
        """Return what changed since the last call or pause, except for hooks that the model itself added or removed."""
        if own_hooks:
            self.window_start, self.latest, self.before_change, now = (
                _without(own_hooks, flags) for flags in (self.window_start, self.latest, self.before_change, now)
            )
        leaks = list(find_leaks(model, self.latest, now))
        for leak in leaks:
            self.before_change.setdefault(leak.name, leak.before)
        self.latest = now
        return leaks

    def restored(self) -> set[str]:
        """Return the names of the flags that changed and have an earlier value again: such a change is not a leak."""
        return {
            name
            for name, before in self.before_change.items()
            if (now := _value(self.latest, name)) in (before, _value(self.window_start, name))
            or (name in self.session_start and now == self.session_start[name])
        }


def read_model_flags(module: nn.Module, skip: Container[int] = ()) -> Flags:
    """Return the flags of a model's modules and parameters by name, without submodules whose id is in `skip`.

    Only hooks and gradients that exist have an entry: most modules and parameters have none.
    """
    flags: Flags = {}
    for path, part in modules.walk(module, skip):
        prefix = f"{path}." if path else ""
        training = modules.training_flag(part)
        flags[f"{prefix}training"] = None if training is None else bool(training)
        tables = _tables(part)
        if any(tables):
            for hooks, table in zip(_HOOKS, tables, strict=True):
                if table:
                    names = ((key, getattr(hook, "__qualname__", type(hook).__name__)) for key, hook in table.items())
                    flags[f"{prefix}{hooks}"] = Hooks(names)
        for name, parameter in part._parameters.items():
            if parameter is not None:
                flags[f"{prefix}{name}.requires_grad"] = parameter.requires_grad
                if parameter.is_leaf and parameter.grad is not None:
                    flags[f"{prefix}{name}.grad"] = _describe_gradient(parameter.grad)
    return flags


def read_global_flags(names: Iterable[str] = ()) -> Flags:
    """Return torch's flags of this process and thread by name, all of them or only `names`."""
    return {name: _read(_GLOBALS[name]) for name in names or _GLOBALS}


def find_leaks(model: str | None, before: Flags, now: Flags) -> Iterator[Leak]:
    """Yield the flags that changed.  An added or removed module or parameter is a change of state, not a leak."""
    for name in {**now, **before} if now != before else ():
        if all(_owner(name) in flags for flags in (before, now)):
            old, new = _value(before, name), _value(now, name)
            if old != new:
                yield Leak(model, name, old, new)


def _value(flags: Flags, name: str) -> FlagValue:
    """Return the value of a flag; that of hooks and gradients without an entry is that there are none."""
    return flags.get(name, Hooks() if name.rpartition(".")[2] in _HOOKS else None)


def _owner(name: str) -> str:
    """Return the flag that exists if the module or parameter exists that a flag belongs to."""
    path, dot, flag = name.rpartition(".")
    if flag == "grad":
        return f"{path}.requires_grad"
    return f"{path}{dot}training" if flag in _HOOKS else name


def hooks_of(parts: Iterable[nn.Module]) -> dict[int, object]:
    """Return the hooks of modules by their keys, which are unique in a process."""
    filled = filter(None, chain.from_iterable(map(_tables, parts)))  # nearly all tables are empty
    return {key: hook for table in filled for key, hook in table.items()}


def hooks_changed_by_model(
    before: Mapping[int, object], parts: Iterable[nn.Module], is_user: Callable[[CodeType], bool]
) -> set[int]:
    """Return the keys of hooks that were added or removed in a forward, but not by the user's code.

    A lazy module removes its own hook once it has its shape; a library may add hooks when its model first runs.
    `before` has the hooks before the forward, `parts` the modules after it.
    """
    now = hooks_of(parts)
    added = {key for key in now.keys() - before.keys() if (code := code_of(now[key])) is not None and not is_user(code)}
    return added | (before.keys() - now.keys())


def code_of(hook: object) -> CodeType | None:
    """Return the code of a function, method, `functools.partial` or callable object, or None."""
    while isinstance(hook, partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    return getattr(function, "__code__", None) or getattr(type(hook).__call__, "__code__", None)


def _tables(part: nn.Module) -> Collection[Mapping[int, object]]:
    try:
        return _ALL_HOOKS(part)
    except AttributeError:  # scripted, or made by another version of torch
        return [getattr(part, name, None) or {} for name in HOOK_TABLES]


def _without(own_hooks: Collection[int], flags: Flags) -> Flags:
    return {
        name: Hooks((key, hook) for key, hook in value.items() if key not in own_hooks)
        if isinstance(value, Hooks)
        else value
        for name, value in flags.items()
    }


def _describe_gradient(grad: torch.Tensor) -> str:
    version = "inference" if grad.is_inference() else f"version {grad._version}"
    return f"tensor of shape {tuple(grad.shape)}, {version}"


def _read(flag: Callable[[], object]) -> FlagValue:
    try:
        value = flag()
        return value if isinstance(value, bool) else str(value).removeprefix("torch.")
    except RuntimeError:
        return "unreadable"  # torch raises for an old flag once its new one is set


def _default_device() -> object:
    """Return what `torch.get_default_device` does, without looking up `torch.device`, which a test may have patched."""
    return next((mode.device for mode in function_modes() if isinstance(mode, DeviceContext)), _CPU)


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
