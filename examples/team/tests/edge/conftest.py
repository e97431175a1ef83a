"""For tests/edge alone: a rule of the team's own.  What goes to the devices must fit there."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode import Rule, Trace, Violation, rule

SMALL = {"float16", "bfloat16", "int8", "int64"}


@rule(
    "edge-dtype",
    fires_when="a model that ran in tests/edge holds anything above float16",
    remedy="convert it first: model.half()",
)
def edge_dtype(trace: Trace) -> Iterator[Violation]:
    for model in trace.models:
        large = sorted(set(model.dtypes) - SMALL)
        if model.forwards and large:
            yield Violation(
                model=model.name,
                subjects=(f"{model.name} ({model.type})",),
                message=f"{model.name} ({model.type}) holds {', '.join(large)}",
                finding=f"{model.name} ({model.type}) holds {', '.join(large)}: the devices have float16",
            )


def pytest_evalmode_rules() -> list[Rule]:
    return [edge_dtype]
