"""pytest plugin: judges the five default rules by plain patches of `__call__`, with no code of the package.

It knows less than the guard (no wrappers, no exports, no names, no lines), and what it knows it knows in another way. A
test on which the two disagree is a test to look at.  The rules of each test are written as JSON to `$ECOSYSTEM_ORACLE`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

_depth = threading.local()
_rules: dict[str, set[str]] = {}
_models: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
"""Each model that ran in this test, kept alive so that no other takes its id, and its state before the first call."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Judge the forwards of one test."""
    with judged() as found:
        _rules[item.nodeid] = found
        return (yield)


def pytest_sessionfinish() -> None:
    """Write what was found."""
    rows = {nodeid: sorted(found) for nodeid, found in _rules.items() if found}
    Path(os.environ["ECOSYSTEM_ORACLE"]).write_text(json.dumps(rows, indent=1))


@contextmanager
def judged() -> Iterator[set[str]]:
    """Judge the outermost forwards of a block, and yield the set that then has the broken rules."""
    found: set[str] = set()
    originals = {cls: vars(cls)["__call__"] for cls in _classes_with_call(nn.Module)}
    for cls, original in originals.items():
        cls.__call__ = _judging(found, original)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for cls, original in originals.items():
            cls.__call__ = original  # type: ignore[method-assign]
        models = list(_models.values())
        _models.clear()
        if any(_differs(before, _state(model)) for model, before in models):
            found.add("state-mutated")


def _classes_with_call(cls: type[nn.Module]) -> Iterator[type[nn.Module]]:
    """Yield a class and those of its subclasses that have a `__call__` of their own, but for torch's."""
    if cls is nn.Module or ("__call__" in vars(cls) and not cls.__module__.startswith("torch.")):
        yield cls
    for subclass in cls.__subclasses__():
        yield from _classes_with_call(subclass)


def _judging(found: set[str], original: Callable[..., Any]) -> Callable[..., Any]:
    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if getattr(_depth, "value", 0):
            return original(module, *args, **kwargs)
        _depth.value = 1
        try:
            return _call(found, original, module, args, kwargs)
        finally:
            _depth.value = 0

    return call


def _call(found: set[str], original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    modules = list(module.modules())
    depends = any(part.training and _depends_on_mode(part) for part in modules)
    weights = any(parameter.requires_grad for parameter in module.parameters())
    before, generator = _state(module), torch.get_rng_state()
    _models.setdefault(id(module), (module, before))
    output = original(module, *args, **kwargs)
    if depends or any(part.training and _has_own_weights(part) for part in modules):
        found.add("train-mode")
    if not depends and list(module.parameters()) and not torch.equal(generator, torch.get_rng_state()):
        found.add("random-forward")
    if torch.is_grad_enabled() and (weights or (before and _requires_grad(output))):
        found.add("grad-mode")
    norms = [part for part in modules if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if any(not norm.training and norm.running_mean is None for norm in norms):
        found.add("batch-stats")
    return output


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    own = [base for base in type(module).__mro__ if not base.__module__.startswith("torch.nn.")]
    codes = (getattr(member, "__code__", None) for base in own for member in vars(base).values())
    return any("training" in code.co_names for code in codes if code is not None)


def _has_own_weights(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _requires_grad(output: object) -> bool:
    if isinstance(output, Tensor):
        return output.requires_grad
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return any(map(_requires_grad, parts))


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.clone() for name, value in state.items() if type(value) is Tensor}


def _differs(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() != after.keys() or any(
        (before[name].shape, before[name].dtype) != (value.shape, value.dtype)
        or not torch.allclose(before[name], value, rtol=0, atol=0, equal_nan=True)
        for name, value in after.items()
    )
