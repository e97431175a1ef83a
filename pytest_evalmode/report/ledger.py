"""The session's record, made from test reports alone: its summary, and the JSON report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytest_evalmode import __version__
from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import Violation
from pytest_evalmode.rules.exemptions import as_declared
from pytest_evalmode.rules.wording import plural
from pytest_evalmode.trace import WatchedModel

SCHEMA = 1
_NOT_REPORTED = ("exemptions", "unjudged", "guarded", "shown")

Record = dict[str, Any]


def record(
    *,
    policy: Policy,
    models: Iterable[WatchedModel],
    violations: Iterable[Violation],
    seconds: float,
    exemptions: Iterable[str],
    unjudged: bool,
    guarded: bool = True,
    shown: Mapping[str, Any] | None = None,
) -> str:
    """What one test found, as it travels in its report: JSON, so that every plugin and every process can carry it.

    `exemptions` are those that excused something; it is `unjudged` where the guard failed, and not `guarded` where the
    test only locked something.  `shown` is what a page needs beyond the JSON report.
    """
    watched = [
        {"name": m.name, "type": m.type, "tensors": m.tensors, "bytes": m.bytes, "forwards": m.forwards} for m in models
    ]
    return json.dumps(
        {
            "reason": "; ".join(policy.reasons) or None,
            "exemptions": list(exemptions),
            "unjudged": unjudged,
            "guarded": guarded,
            "forwards": sum(model["forwards"] for model in watched),
            "seconds": round(seconds, 6),
            "models": watched,
            "violations": [_violation(violation) for violation in violations],
            "shown": dict(shown or {}),
        },
        default=str,  # of the details of a team's rule
    )


def _violation(violation: Violation) -> Record:
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
    }


class Ledger:
    """What the guarded tests of a session found; the last report of a test counts."""

    def __init__(self) -> None:
        self._tests: dict[str, Record] = {}

    def add(self, nodeid: str, outcome: str, record: str) -> None:
        """Enter a guarded test; a failed teardown comes after the call and replaces its outcome."""
        self._tests[nodeid] = {"nodeid": nodeid, "outcome": outcome, **json.loads(record)}

    def __bool__(self) -> bool:
        return bool(self._tests)

    @property
    def tests(self) -> list[Record]:
        """All that is known of each test: what the JSON report tells of it, and more."""
        return list(self._tests.values())

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
        tests = [{k: v for k, v in test.items() if k not in _NOT_REPORTED} for test in self._tests.values()]
        report = {
            "schema": SCHEMA,
            "evalmode": __version__,
            "torch": torch_version(),
            "mode": mode,
            "strict": strict,
            "totals": self.totals(),
            "tests": tests,
        }
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def summary(self) -> Iterator[str]:
        """The lines that end a run."""
        totals = self.totals()
        guarded = sum(test["guarded"] for test in self._tests.values())
        found = sum(len(test["violations"]) for test in self._tests.values())
        clean = "no violation" if any(test["unjudged"] for test in self._tests.values()) else "all clean"
        said = f"{plural(found, 'violation')} in {plural(int(totals['violated']), 'test')}" if found else clean
        yield (
            f"{plural(guarded, 'test')} guarded, {plural(int(totals['models']), 'model')}, "
            f"{plural(int(totals['forwards']), 'forward')}: {said} (guarding took {totals['seconds']:.2f} s)"
        )
        unjudged = sum(test["unjudged"] for test in self._tests.values())
        if unjudged:
            yield f"the guard failed in {plural(unjudged, 'test')}: whether the inference was clean there is not known"
        used: Counter[str] = Counter(map(_exemption, (test for test in self._tests.values() if test["exemptions"])))
        for exemption, tests in sorted(used.items()):
            yield f"exempted in {plural(tests, 'test')}: {exemption}"

    def unneeded(self, policy: Policy) -> Iterator[str]:
        """The exemptions of the ini that no test needed, as lines of the summary."""
        used = {exemption for test in self._tests.values() for exemption in test["exemptions"]}
        for exemption in map(as_declared, policy.declared):
            if exemption not in used:
                yield f"unused-exemption: no test needed {exemption} of the ini (evalmode_...): take it out"


def _exemption(test: Mapping[str, Any]) -> str:
    return ", ".join(test["exemptions"]) + (f" ({test['reason']})" if test["reason"] else "")


def torch_version() -> str | None:
    try:
        return version("torch")
    except PackageNotFoundError:
        return None
