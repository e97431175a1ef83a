"""Fenced code blocks of Markdown pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RULE_PAGES = ROOT / "pytest_evalmode" / "rules" / "pages"

_FENCE = re.compile(r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.M | re.S)
_HEADING = re.compile(r"^## (.+)$", re.M)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, its title (a file name), the heading above it, and its code."""

    language: str
    title: str
    heading: str
    code: str
    at: slice
    """The position of the code in the page."""


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page from top to bottom."""
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(text)]
    for match in _FENCE.finditer(text):
        above = [name for start, name in headings if start < match.start()]
        at = slice(match.start("code"), match.end("code"))
        yield Block(match["language"], match["title"] or "", above[-1] if above else "", match["code"], at)
