"""Joining the traces of a window's parts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from pytest_evalmode.trace import (
    Event,
    Leak,
    Load,
    LockChange,
    ModelOperation,
    ModuleInfo,
    TensorChange,
    Trace,
    WatchedModel,
    join_traces,
)

MODEL = WatchedModel("model", "Net", 2, 8, 1)
LATER = WatchedModel("model", "Net", 2, 8, 2)
STEP = ModelOperation(("model",), "SGD.step()", None)
# The values of a field in two consecutive parts, and the joined value.
JOINED: dict[str, tuple[Any, Any, Any]] = {
    "models": ((MODEL,), (MODEL,), (LATER,)),
    "changes": (
        (TensorChange("model", "weight", "values", numel=1),),
        (TensorChange("model", "weight", "values", numel=2), TensorChange("model", "bias", "values")),
        (TensorChange("model", "weight", "values", numel=1), TensorChange("model", "bias", "values")),
    ),
    "steps": ((STEP,), (STEP,), (STEP,)),
    "writes": ((STEP,), (STEP,), (STEP,)),
    "gradients": ((STEP,), (STEP,), (STEP,)),
    "names": (frozenset({("model", "a")}), frozenset({("model", "b")}), frozenset({("model", "a"), ("model", "b")})),
    "leaks": (
        (Leak(None, "grad_mode", "True", "False"), Leak(None, "threads", "1", "2")),
        (Leak(None, "grad_mode", "False", "True"), Leak(None, "threads", "2", "3")),
        (Leak(None, "threads", "1", "3"),),
    ),
    "needs_forward": (False, True, True),
    "forwards": (2, 3, 5),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_field_with_a_join_of_its_own(name: str) -> None:
    first, second, joined = JOINED[name]
    assert getattr(join_traces([Trace(**{name: first}), Trace(**{name: second})]), name) == joined


@pytest.mark.parametrize("name", sorted({each.name for each in fields(Trace)} - set(JOINED)))
def test_every_other_field_is_concatenated(name: str) -> None:
    """Also a field that is added later: none is lost."""
    facts: list[Any] = [
        Event("forward", "model", None),
        Load(ModuleInfo("model", "", "Net"), None, (), ()),
        LockChange("model", "net", "headline"),
    ]
    values: list[dict[str, Any]] = [{name: (fact,)} for fact in facts]
    parts = [Trace(**value) for value in values]
    assert getattr(join_traces(parts), name) == tuple(facts)
