"""Names of modules or tensors -> the narrowest globs that name them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

MOST = 3


def narrowest_globs(paths: Sequence[str]) -> list[str]:
    """At most three globs that name these paths, and as little else as the names allow; `*` where that takes more.

    `bn1.running_mean`, `bn2.running_var` and so on are `bn*.running_*`.  Layers that have numbers for names are named
    one by one where they are few.
    """
    found = _merged(_merged(paths, _beginning), _without_numbers)
    if len(found) > MOST:
        found = _merged(found, lambda path: re.sub(r"\d+(?=\.|$)", "*", path))
    if len(found) > MOST:
        found = _merged(found, lambda path: f"*.{path.rpartition('.')[2]}" if "." in path else path)
    return found if len(found) <= MOST else ["*"]


def _merged(paths: Iterable[str], glob: Callable[[str], str]) -> list[str]:
    """One glob for all paths that it fits; a path that has none beside it stays as it is."""
    groups: dict[str, set[str]] = {}
    for path in paths:
        groups.setdefault(glob(path), set()).add(path)
    return [wide if len(group) > 1 else next(iter(group)) for wide, group in groups.items()]


def _beginning(path: str) -> str:
    """Tensors of one module whose names begin alike: `bn1.running_*`."""
    owner, dot, leaf = path.rpartition(".")
    begin, bar, _ = leaf.rpartition("_")
    return f"{owner}{dot}{begin}_*" if bar and begin else path


def _without_numbers(path: str) -> str:
    """Modules that are called the same and counted: `bn*`."""
    return re.sub(r"(?<=[a-zA-Z_])\d+(?=\.|$)", "*", path)
