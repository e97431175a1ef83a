"""A custom rule that applies only to tests/edge: the edge devices support only some dtypes."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode import Rule, Trace, Violation, rule

SUPPORTED = {"float16", "bfloat16", "int8", "int64"}


@rule(
    "edge-dtype",
    fires_when="a model that ran has a dtype that the edge devices do not support",
    remedy="convert the model first: model.half()",
)
def edge_dtype(trace: Trace) -> Iterator[Violation]:
    for model in trace.models:
        unsupported = sorted(set(model.dtypes) - SUPPORTED)
        if model.forwards and unsupported:
            yield Violation(
                model=model.name,
                subjects=(f"{model.name} ({model.type})",),
                message=f"{model.name} ({model.type}) has tensors of type {', '.join(unsupported)}",
                finding=f"{model.name} ({model.type}) has tensors of type {', '.join(unsupported)}; use float16",
            )


def pytest_evalmode_rules() -> list[Rule]:
    return [edge_dtype]
