"""The record of each guarded test, which travels in its test report, and the JSON report made of all records."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_evalmode import __version__
from pytest_evalmode.file_writing import replace_file
from pytest_evalmode.policy import Policy
from pytest_evalmode.report.causes import RootCause, root_causes
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import WatchedModel

SCHEMA = 1
_PAGE_ONLY = ("root", "finding", "since")
_NOT_REPORTED = ("exemptions", "unjudged", "guarded", "finished", "dropped", "shown")

Record = Mapping[str, Any]
"""The record of a test: the keys of the JSON report, and others for the summary, the baseline and the HTML report.

The others are `exemptions`, those that suppressed a violation; `unjudged`, whether the guard failed; `guarded`, False
for a test that only uses `evalmode_lock`; `finished`, whether the test ran to its end; `dropped`, the number of
violations that a hook dropped; `shown`, the data of `page_data.py`.
"""


def serialize_record(
    violations: Sequence[Violation], models: Sequence[WatchedModel], policy: Policy, seconds: float, **others: object
) -> str:
    """Return the record of one test as JSON, which `user_properties` can carry through any plugin and process.

    `others` are the keys that the JSON report does not have.
    """
    watched = [
        {"name": m.name, "type": m.type, "tensors": m.tensors, "bytes": m.bytes, "forwards": m.forwards} for m in models
    ]
    record = {
        "reason": "; ".join(policy.reasons) or None,
        "forwards": sum(model.forwards for model in models),
        "seconds": round(seconds, 6),
        "models": watched,
        "violations": [_violation_record(*pair) for pair in zip(violations, root_causes(violations), strict=True)],
    }
    return json.dumps({**record, **others}, default=str)  # user rules may put any object into `details`


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


def totals(tests: Collection[Record]) -> dict[str, Any]:
    """Return the totals of a session for its reports."""
    return {
        "tests": len(tests),
        "violated": sum(bool(test["violations"]) for test in tests),
        "models": len({(model["name"], model["type"]) for test in tests for model in test["models"]}),
        "forwards": sum(test["forwards"] for test in tests),
        "seconds": round(sum(test["seconds"] for test in tests), 6),
    }


def write_report(path: Path, tests: Collection[Record], mode: str, strict: bool) -> None:
    """Write the JSON report."""
    report = {
        "schema": SCHEMA,
        "evalmode": __version__,
        "torch": torch_version(),
        "mode": mode,
        "strict": strict,
        "totals": totals(tests),
        "tests": [_reported(test) for test in tests],
    }
    replace_file(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))


def torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
