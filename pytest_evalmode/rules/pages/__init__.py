"""A page a rule, in Markdown: the documentation shows them, `pytest --evalmode-rules RULE` prints them."""

from __future__ import annotations

from pathlib import Path

from pytest_evalmode.policy import choices
from pytest_evalmode.rules import RULE_NAMES


def page_of(rule: str) -> str:
    """The page of a rule.  Raises LookupError, which names the rules that there are."""
    if rule not in RULE_NAMES:
        raise LookupError(f"{rule!r} is no rule; {choices(rule, RULE_NAMES)}")
    return (Path(__file__).parent / f"{rule}.md").read_text(encoding="utf-8")
