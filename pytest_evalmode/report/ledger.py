"""The session's record, made from test reports alone; and the JSON report."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_evalmode import __version__
from pytest_evalmode.file_writing import replace_file
from pytest_evalmode.policy import Policy
from pytest_evalmode.report.baseline import ObservedViolations
from pytest_evalmode.report.causes import RootCause, root_causes
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import WatchedModel

SCHEMA = 1
_FOR_SUMMARY = ("exemptions", "unjudged", "guarded", "finished", "dropped", "timed", "read", "unread", "shown")

Record = dict[str, Any]


def serialize_record(
    *,
    policy: Policy,
    models: Iterable[WatchedModel],
    violations: Sequence[Violation],
    seconds: float,
    exemptions: Iterable[str],
    guard_failed: bool,
    guarded: bool = True,
    finished: bool = True,
    dropped: int = 0,
    timed: bool = False,
    bytes_read: int = 0,
    bytes_skipped: int = 0,
    page_data: Mapping[str, Any] | None = None,
) -> str:
    """What one test found, as it travels in its report: JSON, so that every plugin and every process can carry it.

    `exemptions` are those that excused something; it is `unjudged` where the guard failed, and not `guarded` where the
    test only locked something.  It `finished` if it came to its end.  `dropped` violations are those of which a hook
    wants nothing told.  It is `timed` if a benchmark times what it guards.  `read` are the bytes of large tensors that
    were read, `unread` those that did not have to be, as the kernel knows that nobody wrote to them.
    `shown` is what a page needs beyond the JSON report.
    """
    watched = [
        {"name": m.name, "type": m.type, "tensors": m.tensors, "bytes": m.bytes, "forwards": m.forwards} for m in models
    ]
    return json.dumps(
        {
            "reason": "; ".join(policy.reasons) or None,
            "exemptions": list(exemptions),
            "unjudged": guard_failed,
            "guarded": guarded,
            "finished": finished,
            "dropped": dropped,
            "timed": timed,
            "read": bytes_read,
            "unread": bytes_skipped,
            "forwards": sum(model["forwards"] for model in watched),
            "seconds": round(seconds, 6),
            "models": watched,
            "violations": [_violation(*found) for found in zip(violations, root_causes(violations), strict=True)],
            "shown": dict(page_data or {}),
        },
        default=str,  # of the details of a team's rule
    )


def short_record(
    models: Iterable[WatchedModel], violations: Iterable[Violation], seconds: float
) -> tuple[int, str, str, int, float]:
    """The same in a few numbers and words: violations, their rules, the models, forwards and seconds."""
    models, violations = list(models), list(violations)
    rules = ", ".join(violation.rule for violation in violations)
    names = ", ".join(f"{model.name} ({model.type})" for model in models)
    return len(violations), rules, names, sum(model.forwards for model in models), round(seconds, 6)


def _violation(violation: Violation, root: RootCause) -> Record:
    return {
        "rule": violation.rule,
        "model": violation.model,
        "subjects": list(violation.subjects),
        "message": violation.message,
        "remedy": violation.remedy,
        "at": str(violation.at) if violation.at else None,
        "cause": str(violation.cause) if violation.cause else None,
        "count": violation.count,
        "details": dict(violation.details),
        "root": list(root),
    }


def _as_reported(test: Record) -> Record:
    """A test without what is for the summary and the page."""
    violations = [{k: v for k, v in violation.items() if k != "root"} for violation in test["violations"]]
    return {**{k: v for k, v in test.items() if k not in _FOR_SUMMARY}, "violations": violations}


class Ledger:
    """What the guarded tests of a session found; the last report of a test counts."""

    def __init__(self) -> None:
        self._tests: dict[str, Record] = {}

    def add(self, nodeid: str, outcome: str, record: str) -> None:
        """Enter a guarded test; a failed teardown comes after the call and replaces its outcome."""
        self._tests[nodeid] = {"nodeid": nodeid, "outcome": outcome, **json.loads(record)}

    def __bool__(self) -> bool:
        return bool(self._tests)

    def totals(self) -> dict[str, int | float]:
        tests = self._tests.values()
        return {
            "tests": len(tests),
            "violated": sum(bool(test["violations"]) for test in tests),
            "models": len({(model["name"], model["type"]) for test in tests for model in test["models"]}),
            "forwards": sum(test["forwards"] for test in tests),
            "seconds": round(sum(test["seconds"] for test in tests), 6),
        }

    def write(self, path: Path, mode: str, strict: bool) -> None:
        """Write the JSON report; folders on the way are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tests = [_as_reported(test) for test in self._tests.values()]
        report = {
            "schema": SCHEMA,
            "evalmode": __version__,
            "torch": torch_version(),
            "mode": mode,
            "strict": strict,
            "totals": self.totals(),
            "tests": tests,
        }
        replace_file(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))

    @property
    def tests(self) -> Collection[Record]:
        """The record of each test."""
        return self._tests.values()

    def observed_violations(self) -> dict[str, ObservedViolations]:
        """What each guarded test was seen to break, for the baseline; an expected failure is no news."""
        return {
            nodeid: ObservedViolations(
                frozenset((v["rule"], v["model"]) for v in test["violations"] if test["outcome"] != "xfailed"),
                finished=test["finished"] and not test["unjudged"],
            )
            for nodeid, test in self._tests.items()
        }


def torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
