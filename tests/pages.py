"""The code of the documentation: Markdown -> blocks, and how those of a page are run."""

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
    """One fenced block: its language, the file that it is, the heading that it stands under, and what it says."""

    language: str
    title: str
    heading: str
    code: str
    at: slice
    """Where the code stands in the page."""


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, from top to bottom."""
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(text)]
    for match in _FENCE.finditer(text):
        above = [name for start, name in headings if start < match.start()]
        at = slice(match.start("code"), match.end("code"))
        yield Block(match["language"], match["title"] or "", above[-1] if above else "", match["code"], at)
