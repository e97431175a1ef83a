"""Globs that match given names of modules or tensors, for the suggested exemption."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

MAX_GLOBS = 3


def narrowest_globs(paths: Sequence[str]) -> list[str]:
    """Return at most three globs that match these paths and few others, or `*` if three are not enough.

    For example `bn*.running_*` for `bn1.running_mean`, `bn2.running_var` and so on.  Numbered layers of a Sequential
    are listed one by one if they are few.
    """
    globs = _merged(_merged(paths, _replace_suffix), _replace_number)
    if len(globs) > MAX_GLOBS:
        globs = _merged(globs, lambda path: re.sub(r"\d+(?=\.|$)", "*", path))
    if len(globs) > MAX_GLOBS:
        globs = _merged(globs, lambda path: f"*.{path.rpartition('.')[2]}" if "." in path else path)
    if len(globs) > MAX_GLOBS:
        globs = _by_prefix(paths)
    return globs if len(globs) <= MAX_GLOBS else ["*"]


def _by_prefix(paths: Sequence[str]) -> list[str]:
    """Return a glob for each prefix that several paths share: `key.*` for the tensors of a part, `queue*` for names."""
    parts = _merged(paths, lambda path: f"{path.partition('.')[0]}.*" if "." in path else path)
    return _merged(parts, lambda path: path if "." in path else f"{path.partition('_')[0]}*")


def _merged(paths: Iterable[str], generalize: Callable[[str], str]) -> list[str]:
    """Replace paths that generalize to the same glob by that glob; keep a path if no other path has its glob."""
    groups: dict[str, set[str]] = {}
    for path in paths:
        groups.setdefault(generalize(path), set()).add(path)
    return [glob if len(group) > 1 else next(iter(group)) for glob, group in groups.items()]


def _replace_suffix(path: str) -> str:
    """Generalize the last word of a tensor's name: `bn1.running_mean` gives `bn1.running_*`."""
    owner, dot, leaf = path.rpartition(".")
    prefix, underscore, _ = leaf.rpartition("_")
    return f"{owner}{dot}{prefix}_*" if underscore and prefix else path


def _replace_number(path: str) -> str:
    """Generalize numbers at the end of module names: `bn1` gives `bn*`."""
    return re.sub(r"(?<=[a-zA-Z_])\d+(?=\.|$)", "*", path)
