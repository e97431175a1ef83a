"""Records of guarded tests, built by hand."""

from __future__ import annotations

from typing import Any


def violation(rule: str = "train-mode", **facts: Any) -> dict[str, Any]:
    return {
        "rule": rule,
        "model": "net",
        "subjects": ["net.bn (BatchNorm1d)"],
        "message": f"{rule}, the headline",
        "remedy": "call net.eval()",
        "at": "test_it.py:9",
        "cause": None,
        "count": 1,
        "details": {},
        "root": [rule, "", facts.get("at", "test_it.py:9")],
        "finding": f"{rule}, the headline",
        "since": None,
        **facts,
    }


def test(name: str, *violations: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {
        "nodeid": f"test_it.py::{name}",
        "outcome": "failed" if violations else "passed",
        "reason": None,
        "exemptions": [],
        "unjudged": False,
        "dropped": 0,
        "guarded": True,
        "forwards": 1,
        "seconds": 0.001,
        "models": [{"name": "net", "type": "Net", "tensors": 2, "bytes": 8, "forwards": 1}],
        "violations": list(violations),
        "shown": {},
        **facts,
    }
