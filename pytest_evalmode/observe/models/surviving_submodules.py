"""Submodules that outlive a garbage-collected model."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from typing import Any

from pytest_evalmode.observe.modules import ModuleTables, NamedModules, walk


def find_surviving_submodules(dying: ModuleTables, skip: Container[int]) -> tuple[NamedModules, list[Any]]:
    """Return the submodules of a dying model that something else still references, with paths, and those that die.

    The submodules of a survivor are left out, as are those whose id is in `skip`, with everything below them.
    """
    survivors: dict[int, tuple[str, Any]] = {}
    dead: list[Any] = [dying]
    paths = {id(part): path for path, part in walk(dying, skip)}
    for owner in dead:  # grows while it is iterated over
        table = owner._modules
        for name in list(table.keys()):  # the table of a ScriptModule is not iterable
            key = id(table[name])
            if key in paths and key not in survivors:
                if _references(table, name) > _ONLY_REFERENCE:
                    survivors[key] = paths[key], table[name]
                else:
                    dead.append(table[name])
    return list(survivors.values()), dead


def _references(table: Mapping[str, object], name: str) -> int:
    return sys.getrefcount(table[name])


_ONLY_REFERENCE = _references({"part": object()}, "part")
"""The reference count of an object that only one table references; it differs between versions of Python."""
