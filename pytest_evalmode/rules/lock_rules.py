"""Rules about the evaluation lock: the model, preprocessing, inputs and outputs must be those that were validated."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.trace import Trace

_REMEDY = (
    "restore the validated version; if the change is intended, run pytest --evalmode-update-lock and review the diff"
)


@rule("model-changed", level="lock", fires_when="a model differs from its lock entry", remedy=_REMEDY)
def model_changed(trace: Trace) -> Iterator[Violation]:
    return _violations(trace, "model")


@rule("inputs-changed", level="lock", fires_when="inputs differ from their lock entry", remedy=_REMEDY)
def inputs_changed(trace: Trace) -> Iterator[Violation]:
    return _violations(trace, "inputs")


@rule(
    "preprocessing-changed",
    level="lock",
    fires_when="a preprocessing step, or a parameter of one, differs from the lock entry",
    remedy=_REMEDY,
)
def preprocessing_changed(trace: Trace) -> Iterator[Violation]:
    return _violations(trace, "preprocessing")


@rule(
    "outputs-changed",
    level="lock",
    fires_when="outputs or metrics differ from their lock entry by more than the tolerance",
    remedy=_REMEDY,
)
def outputs_changed(trace: Trace) -> Iterator[Violation]:
    return _violations(trace, "outputs")


def _violations(trace: Trace, kind: str) -> Iterator[Violation]:
    for change in trace.locks:
        if change.kind == kind:
            yield Violation(
                model=change.name if kind == "model" else None,
                subjects=(change.name,),
                message=change.headline,
                finding=change.finding or change.headline,
                remedy=change.remedy,
                at=change.at,
                details={**change.details, "lock": change.file},
                never_intended="missing" in change.details,  # with an exemption, the entry would never be created
            )
