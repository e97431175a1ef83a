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
_RECORDED = ("rule", "model", "subjects", "message", "remedy", "at", "cause", "count", "details", "finding", "since")
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
    watched = ("name", "type", "tensors", "bytes", "forwards")
    record = {
        "reason": "; ".join(policy.reasons) or None,
        "forwards": sum(model.forwards for model in models),
        "seconds": round(seconds, 6),
        "models": [{name: getattr(model, name) for name in watched} for model in models],
        "violations": [_violation_record(*pair) for pair in zip(violations, root_causes(violations), strict=True)],
    }
    return json.dumps({**record, **others}, default=str)  # for lines, and any object of a user rule in `details`


def _violation_record(violation: Violation, root: RootCause) -> Record:
    values = {name: getattr(violation, name) for name in _RECORDED}
    return {**values, "subjects": list(violation.subjects), "details": dict(violation.details), "root": root}


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
