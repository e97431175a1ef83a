"""What of a model lives on when it dies."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping
from typing import Any

from pytest_evalmode.observe.modules import ModuleTables, NamedModules, walk


def find_surviving_submodules(dying: ModuleTables, skip: Container[int]) -> tuple[NamedModules, list[Any]]:
    """What of a model that is being freed somebody else holds, by its path there; and the parts that go with the model.

    Neither what is beneath a part that lives on, nor the parts to `skip`, by `id`.
    """
    living: dict[int, tuple[str, Any]] = {}
    lost: list[Any] = [dying]
    paths = {id(part): path for path, part in walk(dying, skip)}
    for owner in lost:
        table = owner._modules
        for name in list(table.keys()):  # that of a ScriptModule cannot be iterated over
            key = id(table[name])
            if key in paths and key not in living:
                if _references(table, name) > _ALONE:
                    living[key] = paths[key], table[name]
                else:
                    lost.append(table[name])
    return list(living.values()), lost


def _references(table: Mapping[str, object], name: str) -> int:
    return sys.getrefcount(table[name])


_ALONE = _references({"part": object()}, "part")
"""What is counted of an object that nothing but a table holds; it differs among versions of Python."""
