"""Tokenised text: the ids of a text are a row."""

from __future__ import annotations

from collections.abc import Mapping

Row = tuple[int, ...]
Vocabularies = tuple[Mapping[int, str], Mapping[int, str]]  # what the ids stand for, then and now
