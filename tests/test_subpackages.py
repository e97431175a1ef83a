"""Imports between subpackages follow DIRECTIONS, there are no import cycles, and no subpackage has too many modules."""

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
    """Return the names of all modules of the package, relative to it."""
    files = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files if file.parts != ("__init__",))


# The subpackages and modules that each may import.  A module belongs to the longest prefix of its name listed here.
DIRECTIONS = {
    "trace": set[str](),
    "file_writing": set(),
    "forks": set(),
    "errors": {"report", "rules"},
    "reporter": {"errors", "rules"},
    "policy": set(),
    "rules": {"trace", "policy"},
    "report": {"trace", "rules", "policy", "file_writing"},
    "observe": {"trace", "forks"},
    "observe.model_code": {"trace", "forks", "observe"},
    "observe.source": {"trace", "forks", "observe"},
    "observe.state": {"trace", "forks", "observe", "observe.model_code", "observe.source"},
    "observe.models": {"trace", "forks", "observe", "observe.model_code", "observe.source", "observe.state"},
    "observe.calls": {
        "trace",
        "forks",
        "observe",
        "observe.model_code",
        "observe.source",
        "observe.state",
        "observe.models",
    },
    "observe.forwards": {
        *("trace", "forks", "observe", "observe.model_code", "observe.source", "observe.state", "observe.models"),
        "observe.calls",
    },
    "lock.causes": set(),
    "lock.arrays": {"trace", "lock.lock_file", "lock.causes"},
}


@cache
def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports, including imports in functions and for type checkers."""
    known = set(modules())
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    source = (path if path.exists() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pytest_evalmode":
            home = node.module.removeprefix("pytest_evalmode").removeprefix(".")
            named = {".".join(filter(None, (home, alias.name))) for alias in node.names}
            imported |= named & known or {home}
    return imported - {""}


def subpackage(module: str) -> str:
    """Return the entry of DIRECTIONS that a module belongs to, or the module's own name."""
    prefixes = [name for name in DIRECTIONS if module == name or module.startswith(f"{name}.")]
    return max(prefixes, key=len, default=module)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_imports_follow_the_allowed_directions(name: str) -> None:
    inside = [module for module in modules() if subpackage(module) == name]
    assert inside
    assert {subpackage(other) for module in inside for other in imports(module)} - {name} <= DIRECTIONS[name]


def test_the_lock_uses_the_rest_of_the_package_through_one_module() -> None:
    """Except facts (`trace`), words (`rules.wording`), files, forks and the fingerprints of models."""
    allowed = {"trace", "rules.wording", "observe.modules", "observe.state", "observe.state.snapshot"}
    allowed |= {"observe.state.fingerprint", "file_writing", "forks"}
    inside = [module for module in modules() if module.startswith("lock.") and module != "lock.host"]
    others = {other for module in inside for other in imports(module) if not other.startswith("lock")}
    assert others <= allowed


def test_there_are_no_import_cycles() -> None:
    """Imports for type checkers count too.  TopologicalSorter raises CycleError, which names the cycle."""
    list(TopologicalSorter({module: imports(module) for module in modules()}).static_order())


def test_no_package_has_more_than_ten_modules() -> None:
    folders = [folder for folder in (PACKAGE, *PACKAGE.rglob("*")) if folder.is_dir() and folder.name != "__pycache__"]
    counts = {folder.name: len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > 10} == {}
