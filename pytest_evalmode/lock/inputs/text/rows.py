"""Types for tokenized text."""

from __future__ import annotations

from collections.abc import Mapping

Row = tuple[int, ...]  # the token ids of one text
# The text of each token id, in the locked and in the current run.
Vocabularies = tuple[Mapping[int, str], Mapping[int, str]]
