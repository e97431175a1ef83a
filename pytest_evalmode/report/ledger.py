"""The record of each guarded test, which travels in its test report, and the JSON report made of all records."""

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
_PAGE_ONLY = ("root", "finding", "since")
_NOT_REPORTED = ("exemptions", "unjudged", "guarded", "finished", "dropped", "timed", "read", "unread", "shown")

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
    """Return the record of one test as JSON, which `user_properties` can carry through any plugin and process.

    Args:
        policy: The policy of the test.
        models: The watched models.
        violations: All violations, known ones included.
        seconds: The cost of guarding.
        exemptions: The exemptions that suppressed a violation, as declared.
        guard_failed: Whether the guard itself failed, so that the result is unknown.
        guarded: Whether forwards were guarded; a test may only use `evalmode_lock`.
        finished: Whether the test ran to its end.
        dropped: Number of violations that the `pytest_evalmode_violation` hook dropped.
        timed: Whether pytest-benchmark timed the guarded code.
        bytes_read: Bytes of large tensors that were read.
        bytes_skipped: Bytes of large tensors that the kernel reports as unmodified.
        page_data: Data that the HTML report needs in addition to the JSON report.
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
            "violations": [_violation_record(*pair) for pair in zip(violations, root_causes(violations), strict=True)],
            "shown": dict(page_data or {}),
        },
        default=str,  # user rules may put any object into `details`
    )


def short_record(
    models: Iterable[WatchedModel], violations: Iterable[Violation], seconds: float
) -> tuple[int, str, str, int, float]:
    """Return a short form of the record: number of violations, rules, models, number of forwards, seconds."""
    models, violations = list(models), list(violations)
    rules = ", ".join(violation.rule for violation in violations)
    names = ", ".join(f"{model.name} ({model.type})" for model in models)
    return len(violations), rules, names, sum(model.forwards for model in models), round(seconds, 6)


def _violation_record(violation: Violation, root: RootCause) -> Record:
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
        "finding": violation.finding,
        "since": str(violation.since) if violation.since else None,
    }


def _reported(test: Record) -> Record:
    """Return a record without the keys that only the summary and the HTML report use."""
    violations = [{k: v for k, v in violation.items() if k not in _PAGE_ONLY} for violation in test["violations"]]
    return {**{k: v for k, v in test.items() if k not in _NOT_REPORTED}, "violations": violations}


class Ledger:
    """The records of all guarded tests of a session; if a test reports several times, the last report counts."""

    def __init__(self) -> None:
        self._tests: dict[str, Record] = {}

    def add(self, nodeid: str, outcome: str, record: str) -> None:
        """Add or replace the record of a test: a failed teardown comes after the call and replaces its outcome."""
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
        """Write the JSON report."""
        report = {
            "schema": SCHEMA,
            "evalmode": __version__,
            "torch": torch_version(),
            "mode": mode,
            "strict": strict,
            "totals": self.totals(),
            "tests": [_reported(test) for test in self._tests.values()],
        }
        replace_file(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))

    @property
    def tests(self) -> Collection[Record]:
        """The record of each test."""
        return self._tests.values()

    def observed_violations(self) -> dict[str, ObservedViolations]:
        """Return the violations of each test for the baseline, without those that an xfail mark expects."""
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
