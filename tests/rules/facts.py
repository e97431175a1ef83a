"""Facts of a window, built by hand without torch."""

from __future__ import annotations

from typing import Any

from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation, Site, TensorChange, Trace

HERE = Site("tests/test_net.py", 31, "logits = model(images)")
THERE = Site("tests/test_net.py", 40, "model(images)")
INSIDE = Site("src/net.py", 88, "x = F.dropout(x)")


def observed(
    path: str, kind: str, *, model: str = "model", mode_dependent: bool = True, cause: Site | None = None, why: str = ""
) -> Observation:
    """Return an observation of one module of a model."""
    return Observation(ModuleInfo(model, path, kind, mode_dependent), cause, why)


def call(model: str = "model", kind: str = "Net", /, **facts: Any) -> ForwardCall:
    """Return a forward of a model of seven modules, called on the line `HERE`."""
    expression = model if model[0].islower() else ""  # a type is not a name that the user can write
    return ForwardCall(
        **{"ran": ModuleInfo(model, "", kind), "at": HERE, "modules": 7, "expression": expression, **facts}
    )


def changed(path: str, model: str = "model", **facts: Any) -> TensorChange:
    return TensorChange(model, path, **{"what": "values", **facts})


def calls(*forwards: ForwardCall) -> Trace:
    return Trace(calls=forwards)


def changes(*tensors: TensorChange) -> Trace:
    return Trace(changes=tensors)
