"""A page a rule, in Markdown: the documentation shows them, `pytest --evalmode-rules RULE` prints them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pytest_evalmode.policy import suggest_choices
from pytest_evalmode.rules import RULE_NAMES


def page_of(rule: str, *, also: Iterable[str] = ()) -> str:
    """The page of a rule.  Raises LookupError, which names the rules that there are, `also` those of teams."""
    if rule not in RULE_NAMES:
        raise LookupError(f"{rule!r} is no rule; {suggest_choices(rule, (*RULE_NAMES, *also))}")
    return (Path(__file__).parent / f"{rule}.md").read_text(encoding="utf-8")
