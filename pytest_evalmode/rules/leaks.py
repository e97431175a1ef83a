"""Rules about what a test leaves behind: on the models it shares with others, and in torch itself."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.base import Violation, rule
from pytest_evalmode.trace import Leak, Trace


@rule(
    "model-leaked",
    level="strict",
    fires_when="the test left a shared model different: train/eval flags, requires_grad, .grad, hooks",
    remedy="put it back (try/finally, a context manager, handle.remove()), or work on a copy",
)
def model_leaked(trace: Trace) -> Iterator[Violation]:
    for model in dict.fromkeys(leak.model for leak in trace.leaks if leak.model is not None):
        leaks = [leak for leak in trace.leaks if leak.model == model]
        yield _violation(model, [f"{model}.{leak.name}" for leak in leaks], leaks)


@rule(
    "global-leaked",
    level="strict",
    fires_when="the test left torch's global state different",
    remedy="set it in a context manager, or put it back in a fixture's teardown",
)
def global_leaked(trace: Trace) -> Iterator[Violation]:
    leaks = [leak for leak in trace.leaks if leak.model is None]
    if leaks:
        yield _violation(None, [f"torch {leak.name}" for leak in leaks], leaks)


def _violation(model: str | None, subjects: list[str], leaks: list[Leak]) -> Violation:
    first = f"{subjects[0]} was {leaks[0].before} and is {leaks[0].after}"
    more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
    return Violation(
        model=model,
        subjects=tuple(subjects),
        message=f"{first}{more}",
        finding=f"{first} after the test{more}",
        count=len(leaks),
        details={"leaks": {name: f"{leak.before} -> {leak.after}" for name, leak in zip(subjects, leaks, strict=True)}},
    )
