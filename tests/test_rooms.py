"""Imports between the rooms go one way and in no circle, and no room has too many doors."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pytest_evalmode

PACKAGE = Path(pytest_evalmode.__file__).parent


@cache
def modules() -> list[str]:
    """Every module of the package, by its name within it."""
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files if file.parts != ("__init__",))


# Who may import whom, by the beginnings of their names: the longest that fits is the room that a module is in.
DIRECTIONS = {
    "trace": set[str](),
    "file_writing": set(),
    "errors": {"report", "rules"},
    "policy": set(),
    "rules": {"trace", "policy"},
    "report": {"trace", "rules", "policy", "file_writing"},
    "observe": {"trace"},
    "observe.source": {"trace", "observe"},
    "observe.state": {"trace", "observe", "observe.source"},
    "observe.models": {"trace", "observe", "observe.source", "observe.state"},
    "observe.calls": {"trace", "observe", "observe.source", "observe.state", "observe.models"},
    "observe.forwards": {"trace", "observe", "observe.source", "observe.state", "observe.models", "observe.calls"},
    "lock.inputs": {"rules"},
    "lock.arrays": {"trace", "lock.lock_file", "lock.inputs", "lock.outputs"},
}


@cache
def imports(module: str) -> set[str]:
    """The modules of the package that a module imports anywhere in it, for type checkers too."""
    known = set(modules())
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    source = (path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pytest_evalmode":
            home = node.module.removeprefix("pytest_evalmode").removeprefix(".")
            named = {".".join(filter(None, (home, alias.name))) for alias in node.names}
            found |= named & known or {home}
    return found - {""}


def room(module: str) -> str:
    """The room of DIRECTIONS that a module is in, or its own name."""
    rooms = [name for name in DIRECTIONS if module == name or module.startswith(f"{name}.")]
    return max(rooms, key=len, default=module)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_imports_go_one_way(name: str) -> None:
    inside = [module for module in modules() if room(module) == name]
    assert inside
    assert {room(other) for module in inside for other in imports(module)} - {name} <= DIRECTIONS[name]


def test_the_lock_uses_the_rest_of_the_package_through_one_module() -> None:
    """Values (`trace`), words (`rules.wording`) and the fingerprints of models aside."""
    allowed = {"trace", "rules.wording", "observe.modules", "observe.state", "observe.state.snapshot"}
    allowed |= {"observe.state.fingerprint"}
    inside = [module for module in modules() if module.startswith("lock.") and module != "lock.host"]
    others = {other for module in inside for other in imports(module) if not other.startswith("lock")}
    assert others <= allowed


def test_no_import_goes_in_a_circle() -> None:
    """Those for type checkers included; TopologicalSorter raises CycleError, which names the circle."""
    list(TopologicalSorter({module: imports(module) for module in modules()}).static_order())


def test_no_room_has_more_than_ten_doors() -> None:
    rooms = [folder for folder in (PACKAGE, *PACKAGE.rglob("*")) if folder.is_dir() and folder.name != "__pycache__"]
    doors = {folder.name: len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) for folder in rooms}
    assert {name: number for name, number in doors.items() if number > 10} == {}
