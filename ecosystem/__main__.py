"""`python -m ecosystem`: run public architectures and test suites, and compare what the guard says with the record.

What has run with the same code of the package is not run again.  The exit status is 1 if something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ecosystem import evidence, libraries, record, suites
from ecosystem.environments import ROOT, WORK, python, variables
from ecosystem.record import Row

ATTEMPTS = 20
"""How often a library is started again after one of its architectures has crashed the process."""

LIBRARIES = [module.name for module in pkgutil.iter_modules(libraries.__path__)]
PROJECTS = {f"suite-{project.name}": project for project in suites.projects()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, and print the differences as Markdown."""
    parser = argparse.ArgumentParser("ecosystem", description=__doc__)
    parser.add_argument("--only", type=_names, default=[*LIBRARIES, *PROJECTS], help="libraries and suites, a,b,c")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="run one part of the work, for example 2/4")
    parser.add_argument("--accept", action="store_true", help="write the record, and docs/evidence.md from it")
    options = parser.parse_args(arguments)

    number, count = options.shard
    differs = False
    for position, name in enumerate(options.only):
        if name in PROJECTS and position % count != number - 1:
            continue
        rows, cost = _suite(name) if name in PROJECTS else _architectures(name, number, count)
        path = record.FOLDER / f"{name}.jsonl"
        new, gone = record.compare(path, rows)
        if count > 1 and name in LIBRARIES:
            gone = []  # they are in another shard
        print("\n".join(_section(name, rows, new, gone, cost)), flush=True)
        differs = differs or bool(new or gone)
        if options.accept:
            record.save(path, rows)
    if options.accept:
        evidence.write()
    return int(differs)


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in LIBRARIES and name not in PROJECTS:
            raise argparse.ArgumentTypeError(f"{name!r} (choose from {', '.join([*LIBRARIES, *PROJECTS])})")
    return names


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} (expected a number and a count, for example 2/4)")
    return int(number), int(count)


def _suite(name: str) -> tuple[list[Row], dict[str, float]]:
    project, results = PROJECTS[name], _results() / name
    suites.check(project, results)
    return list(suites.rows(project, results)), suites.seconds(results)


def _architectures(name: str, number: int, count: int) -> tuple[list[Row], dict[str, float]]:
    interpreter = python(import_module(f"ecosystem.libraries.{name}").REQUIREMENTS)
    results = _results() / f"{name}-{number}-{count}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        command = [interpreter, "-m", "ecosystem.worker", name, results, f"{number}/{count}"]
        if subprocess.run(command, cwd=WORK, env=variables(), check=False).returncode == 0:
            break
    last = {row["name"]: row for row in record.load(results)}  # a later line of the same name replaces "crashed"
    rows = [row for row in last.values() if "skipped" not in row]
    cost = {mode: sum(row.pop(f"{mode}_seconds", 0) for row in rows) for mode in ("plain", "guarded")}
    return rows, cost


def _results() -> Path:
    """Return the folder for the results of this code of the package."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted((ROOT / "pytest_evalmode").rglob("*.py")):
        digest.update(path.read_bytes())
    return WORK / "results" / digest.hexdigest()


def _section(name: str, rows: list[Row], new: list[Row], gone: list[Row], cost: dict[str, float]) -> list[str]:
    times = ", ".join(f"{seconds:.1f} s {mode}" for mode, seconds in cost.items())
    lines = [f"## {name}", "", f"{len(rows)} rows; processor time: {times}.", ""]
    for title, differing in (("New", new), ("Gone", gone)):
        lines += [f"- {title}: `{row}`" for row in differing]
    return [*lines, *([] if new or gone else ["As recorded."]), ""]


if __name__ == "__main__":
    sys.exit(main())
