"""Globs that match given names of modules or tensors, for the suggested exemption."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_GLOBS = 3


def narrowest_globs(paths: Sequence[str]) -> list[str]:
    """Return at most three globs that match these paths and few others, or `*` if three are not enough.

    For example `bn*.running_*` for `bn1.running_mean`, `bn2.running_var` and so on.  Numbered layers of a Sequential
    are listed one by one if they are few.
    """
    globs = _merged(paths, r"(?<=[^.])_[^_.]*$", "_*")  # the last word of a tensor's name
    globs = _merged(globs, r"(?<=[a-zA-Z_])\d+(?=\.|$)", "*")  # numbers at the end of modules' names
    for pattern, replacement in ((r"\d+(?=\.|$)", "*"), (r"^.*\.", "*.")):
        if len(globs) > MAX_GLOBS:
            globs = _merged(globs, pattern, replacement)
    if len(globs) > MAX_GLOBS:  # prefixes: `key.*` for the tensors of a part, `queue*` for names
        globs = _merged(_merged(paths, r"\..*", ".*"), r"^([^._]*)[^.]*$", r"\1*")
    return globs if len(globs) <= MAX_GLOBS else ["*"]


def _merged(paths: Iterable[str], pattern: str, replacement: str) -> list[str]:
    """Replace paths that the pattern generalizes to the same glob by that glob; keep the other paths."""
    groups: dict[str, set[str]] = {}
    for path in paths:
        groups.setdefault(re.sub(pattern, replacement, path), set()).add(path)
    return [glob if len(group) > 1 else next(iter(group)) for glob, group in groups.items()]
