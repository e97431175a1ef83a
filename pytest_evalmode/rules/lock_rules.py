"""Rules about the evaluation lock: the model, preprocessing, inputs and outputs must be those that were validated."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.rule import Rule, Violation, rule
from pytest_evalmode.trace import Trace

_REMEDY = (
    "restore the validated version; if the change is intended, run pytest --evalmode-update-lock and review the diff"
)


def _rule_of(kind: str, fires_when: str) -> Rule:
    """Return the rule that reports the differences of one kind."""

    @rule(f"{kind}-changed", level="lock", fires_when=fires_when, remedy=_REMEDY)
    def check(trace: Trace) -> Iterator[Violation]:
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
                    never_intended="missing" in change.details,  # with an exemption, no entry would be created
                )

    return check


model_changed = _rule_of("model", "a model differs from its lock entry")
inputs_changed = _rule_of("inputs", "inputs differ from their lock entry")
preprocessing_changed = _rule_of(
    "preprocessing", "a preprocessing step, or a parameter of one, differs from the lock entry"
)
outputs_changed = _rule_of("outputs", "outputs or metrics differ from their lock entry by more than the tolerance")
