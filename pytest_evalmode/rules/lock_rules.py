"""Rules about what was locked: this run's model, preprocessing, inputs and outputs are the ones that were validated."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.trace import Trace

_REMEDY = "restore what was validated; if the change is meant, run pytest --evalmode-update-lock and review the diff"


@rule("model-changed", level="lock", fires_when="a model is not the one that was locked", remedy=_REMEDY)
def model_changed(trace: Trace) -> Iterator[Violation]:
    return _changed(trace, "model")


@rule("inputs-changed", level="lock", fires_when="inputs are not the ones that were locked", remedy=_REMEDY)
def inputs_changed(trace: Trace) -> Iterator[Violation]:
    return _changed(trace, "inputs")


@rule(
    "preprocessing-changed",
    level="lock",
    fires_when="a step of the preprocessing, or a parameter of one, is not what was locked",
    remedy=_REMEDY,
)
def preprocessing_changed(trace: Trace) -> Iterator[Violation]:
    return _changed(trace, "preprocessing")


@rule(
    "outputs-changed",
    level="lock",
    fires_when="outputs or metrics are not, within tolerance, what was locked",
    remedy=_REMEDY,
)
def outputs_changed(trace: Trace) -> Iterator[Violation]:
    return _changed(trace, "outputs")


def _changed(trace: Trace, kind: str) -> Iterator[Violation]:
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
                never_intended="missing" in change.details,  # an exemption would keep it from ever being locked
            )
