"""`python -m ecosystem`: run public architectures and test suites, and compare what the guard says with the record.

What has run with the same code is not run again.  The exit status is 1 if something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ecosystem import evidence, libraries, record, suites
from ecosystem.environments import ROOT, WORK, python, variables
from ecosystem.record import Row

LIBRARIES = [module.name for module in pkgutil.iter_modules(libraries.__path__)]
PROJECTS = {f"{suites.SUITE}{project.name}": project for project in suites.projects()}
LINES = 50
"""How many new and how many gone rows of a library or suite are printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, and print the differences as Markdown."""
    parser = argparse.ArgumentParser("ecosystem", description=__doc__)
    parser.add_argument("--only", type=names, default=[*LIBRARIES, *PROJECTS], help="libraries and suites, a,b,c")
    parser.add_argument("--shard", type=shard, default=(1, 1), help="run one part of the work, for example 2/4")
    parser.add_argument("--accept", action="store_true", help="write the record, and docs/evidence.md from it")
    options = parser.parse_args(arguments)
    number, count = options.shard
    if options.accept and count > 1:
        parser.error("--accept needs the results of all shards: run it without --shard afterwards")

    differs = False
    for position, name in enumerate(options.only):
        if name in PROJECTS and position % count != number - 1:
            continue
        rows, cost = _suite(name) if name in PROJECTS else _architectures(name, number, count)
        path = record.FOLDER / f"{name}.jsonl"
        new, gone = record.compare(path, rows, complete=name in PROJECTS or count == 1)
        print("\n".join(section(name, rows, new, gone, cost)), flush=True)
        differs = differs or bool(new or gone)
        if options.accept:
            record.save(path, rows)
            record.save_seconds(name, cost)
    if options.accept:
        evidence.write()
    return int(differs)


def names(text: str) -> list[str]:
    """Return the names of libraries and suites in an option."""
    found = text.split(",")
    for name in found:
        if name not in LIBRARIES and name not in PROJECTS:
            raise argparse.ArgumentTypeError(f"{name!r} (choose from {', '.join([*LIBRARIES, *PROJECTS])})")
    return found


def shard(text: str) -> tuple[int, int]:
    """Return the number of a shard, from 1, and how many there are."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} (expected a number and a count, for example 2/4)")
    return int(number), int(count)


def section(name: str, rows: list[Row], new: list[Row], gone: list[Row], cost: dict[str, float]) -> list[str]:
    """Return Markdown: what is new, what is gone, and the processor time."""
    skipped = sum("skipped" in row for row in rows)
    times = ", ".join(f"{seconds:.1f} s {mode}" for mode, seconds in cost.items())
    lines = [f"## {name}", "", f"{len(rows) - skipped} rows, {skipped} skipped; processor time: {times}.", ""]
    for title, differing in (("New", new), ("Gone", gone)):
        lines += [f"- {title}: `{json.dumps(row, ensure_ascii=False)}`" for row in differing[:LINES]]
        if len(differing) > LINES:
            lines.append(f"- {title}: {len(differing) - LINES} more")
    return [*lines, *([] if new or gone else ["As recorded."]), ""]


def _suite(name: str) -> tuple[list[Row], dict[str, float]]:
    project = PROJECTS[name]
    results = _results("ecosystem/oracle.py", "ecosystem/projects.toml", "ecosystem/seeds.py") / name
    suites.check(project, results)
    return list(suites.rows(project, results)), suites.seconds(results)


def _architectures(name: str, number: int, count: int) -> tuple[list[Row], dict[str, float]]:
    """Run the architectures of one shard; return all that have run, also those of other shards."""
    module = f"ecosystem/libraries/{name}.py"
    interpreter = python(import_module(f"ecosystem.libraries.{name}").REQUIREMENTS)
    results = _results("ecosystem/architectures.py", "ecosystem/inputs.py", module) / f"{name}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    command = [str(interpreter), "-m", "ecosystem.worker", name, str(results), f"{number}/{count}"]
    progress = -1
    while subprocess.run(command, cwd=WORK, env=variables(), stdout=sys.stderr, check=False).returncode:
        before, progress = progress, len(record.load(results))
        if before == progress:
            raise SystemExit(f"{name}: the worker fails before its first architecture")
    last = {row["name"]: row for row in record.load(results)}  # a later line of the same name replaces "crashed"
    times = ("plain_seconds", "guarded_seconds", "seconds")
    cost = {mode: sum(row.pop(mode, 0) for row in last.values()) for mode in times}
    return list(last.values()), dict(zip(("plain", "guarded", "in all"), cost.values(), strict=True))


def _results(*sources: str) -> Path:
    """Return the folder for the results of this code: of the package, and of these files."""
    digest = hashlib.blake2b(digest_size=6)
    for path in [*sorted((ROOT / "pytest_evalmode").rglob("*.py")), *(ROOT / source for source in sources)]:
        digest.update(path.read_bytes())
    return WORK / "results" / digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
