"""One Markdown page per rule, shown in the documentation and printed by `pytest --evalmode-rules RULE`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_evalmode.policy import suggest_choices
from pytest_evalmode.rules import RULE_NAMES


def page_of(rule: str, *, also: Iterable[str] = ()) -> str:
    """Return the page of a built-in rule as Markdown, or raise LookupError, which also lists the custom rules."""
    if rule not in RULE_NAMES:
        raise LookupError(f"unknown rule {rule!r} ({suggest_choices(rule, (*RULE_NAMES, *also))})")
    return (Path(__file__).parent / f"{rule}.md").read_text(encoding="utf-8")
