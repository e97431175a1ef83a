"""The flags, gradients and hooks of shared models, and torch's global state, before and after -> Leak."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from pytest_evalmode.observe.models import walk
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

Flags = dict[str, str]


@dataclass(slots=True)
class Baseline:
    """How something was set, a model or torch itself."""

    first: Flags
    """When the window began."""
    last: Flags
    """When the part of the window began that runs now."""
    before: Flags = field(default_factory=dict)
    """When it was set for the first time, but for what was set in a pause."""

    def since(self, model: str | None, now: Flags) -> list[Leak]:
        """What has been set otherwise in this part of the window; another begins."""
        found = list(leaks(model, self.last, now))
        self.last = now
        for leak in found:
            self.before.setdefault(leak.name, leak.before)
        return found

    def put_back(self) -> set[str]:
        """What is now as it was at first, or before it was set."""
        return {name for name, is_ in self.last.items() if is_ in (self.first.get(name), self.before.get(name))}


def model_flags(module: nn.Module, skip: Container[int] = ()) -> Flags:
    """How a model is set: by name, what each of its modules and parameters says of itself, but for parts to `skip`."""
    flags: Flags = {}
    for path, part in walk(module, skip):
        prefix = f"{path}." if path else ""
        training = getattr(part, "training", None)
        if training is not None:
            flags[f"{prefix}training"] = str(training)
        for hooks in _HOOKS:
            flags[f"{prefix}{hooks.lstrip('_')}"] = _hooks(getattr(part, hooks, None) or {})
        for name, parameter in part._parameters.items():
            if parameter is not None:
                flags[f"{prefix}{name}.requires_grad"] = str(parameter.requires_grad)
                flags[f"{prefix}{name}.grad"] = _grad(parameter)
    return flags


def global_flags() -> Flags:
    """What torch keeps for the whole process, and for this thread."""
    return {name: _read(flag) for name, flag in _GLOBALS.items()}


def leaks(model: str | None, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Leak]:
    """What is otherwise than it was; a module or parameter that has come or gone is no leak but a change of state."""
    for name, was in before.items():
        is_ = now.get(name, was)
        if was != is_:
            yield Leak(model, name, was, is_)


def _hooks(hooks: Mapping[int, object]) -> str:
    names = [getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks.values()]
    return ", ".join(f"{name} #{key}" for key, name in zip(hooks, names, strict=True)) or "none"


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


def _cudnn(name: str) -> Callable[[], object]:
    return lambda: getattr(torch.backends.cudnn, name)


_GLOBALS: dict[str, Callable[[], object]] = {
    "grad_mode": torch.is_grad_enabled,
    "inference_mode": torch.is_inference_mode_enabled,
    "default_dtype": torch.get_default_dtype,
    "default_device": torch.get_default_device,
    "deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "deterministic_algorithms_warn_only": torch.is_deterministic_algorithms_warn_only_enabled,
    "float32_matmul_precision": torch.get_float32_matmul_precision,
    "cudnn.enabled": _cudnn("enabled"),
    "cudnn.benchmark": _cudnn("benchmark"),
    "cudnn.deterministic": _cudnn("deterministic"),
    "cudnn.allow_tf32": _cudnn("allow_tf32"),
    "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "autocast.cpu": lambda: torch.is_autocast_enabled("cpu"),
    "autocast.cuda": lambda: torch.is_autocast_enabled("cuda"),
    "autocast.cpu_dtype": lambda: torch.get_autocast_dtype("cpu"),
    "autocast.cuda_dtype": lambda: torch.get_autocast_dtype("cuda"),
    "threads": torch.get_num_threads,
    "anomaly_mode": torch.is_anomaly_enabled,
}
