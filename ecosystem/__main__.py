"""`python -m ecosystem [NAME ...]`: run libraries and projects, and compare what they show with the record.

Each name is a module of `ecosystem.libraries` or a project of `projects.toml`; without names, all run.  What has run
with the same code of the package is not run again.  The exit status is 1 if something differs from the record.
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, and print the differences as Markdown."""
    names = [module.name for module in pkgutil.iter_modules(libraries.__path__)]
    projects = {f"suite-{project.name}": project for project in suites.projects()}
    parser = argparse.ArgumentParser("ecosystem", description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*names, *projects, []], metavar="NAME", help="a library or suite-PROJECT"
    )
    parser.add_argument("--shard", default="1/1", help="run one part of the work, for example 2/4")
    parser.add_argument("--accept", action="store_true", help="write the record, and docs/evidence.md from it")
    options = parser.parse_args(arguments)

    number, count = map(int, options.shard.split("/"))
    chosen = options.names or [*names, *projects]
    lines, differs = [], False
    for position, name in enumerate(chosen):
        path = record.FOLDER / f"{name}.jsonl"
        if name in projects:
            if position % count != number - 1:
                continue
            results = _results() / name
            suites.check(projects[name], results)
            rows, cost = list(suites.rows(projects[name], results)), suites.seconds(results)
        else:
            rows, cost = _architectures(name, options.shard)
        if options.accept:
            record.save(path, rows)
        new, gone = record.compare(path, rows)
        gone = [] if count > 1 and name in names else gone  # the others are in another shard
        lines += _section(name, rows, new, gone, cost)
        differs = differs or bool(new or gone)
    if options.accept:
        evidence.write()
    print("\n".join(lines))
    return int(differs)


def _architectures(name: str, shard: str) -> tuple[list[Row], dict[str, float]]:
    interpreter = python(import_module(f"ecosystem.libraries.{name}").REQUIREMENTS)
    results = _results() / f"{name}-{shard.replace('/', '-')}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        command = [interpreter, "-m", "ecosystem.worker", name, results, shard]
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
