"""The test suite of a public project, run with the plugin off, warning and enforcing."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tarfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ecosystem.environments import ROOT, WORK, python, variables

MODES = ("off", "warn", "enforce")


@dataclass(frozen=True)
class Project:
    """A project of `projects.toml`.

    Attributes:
        name: Its name in the registry.
        version: The pinned version of its sdist.
        requirements: What its tests need besides itself, all pinned.
        tests: Paths within the sdist.
        options: More options of pytest.
    """

    name: str
    version: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()


def projects() -> list[Project]:
    """Return all projects of `projects.toml`."""
    table = tomllib.loads((ROOT / "ecosystem" / "projects.toml").read_text())
    return [
        Project(name, row["version"], tuple(row["requirements"]), tuple(row["tests"]), tuple(row.get("options", ())))
        for name, row in table.items()
    ]


def check(project: Project, results: Path) -> None:
    """Run the tests of a project in each mode that `results` does not have yet, and write what they show.

    Args:
        project: The project.
        results: The folder for the results; each mode leaves its files there.
    """
    interpreter = python((*project.requirements, f"{project.name}=={project.version}"))
    source = _source(project, interpreter)
    results.mkdir(parents=True, exist_ok=True)
    for mode in MODES:
        if (results / f"{mode}.seconds").exists():
            continue
        command = [
            interpreter,
            "-m",
            "pytest",
            "-p",
            "ecosystem.seeds",
            "-p",
            "no:cacheprovider",
            "--timeout=600",
            "--quiet",
        ]
        command += (
            ["-p", "ecosystem.oracle"]
            if mode == "off"
            else ["--evalmode-all", f"--evalmode-report={results / f'{mode}.json'}"]
        )
        command += [f"--evalmode={mode}", f"--junitxml={results / f'{mode}.xml'}", "-o", "junit_family=xunit2"]
        environment = variables() | {"ECOSYSTEM_ORACLE": str(results / "oracle.json")}
        before = _processor_seconds()
        with open(results / f"{mode}.log", "w") as log:
            subprocess.run(
                [*command, *project.options, *project.tests], cwd=source, env=environment, stdout=log, stderr=log
            )
        (results / f"{mode}.seconds").write_text(f"{_processor_seconds() - before:.1f}")


def rows(project: Project, results: Path) -> Iterator[dict[str, Any]]:
    """Yield what the record has of a project: a line of totals, one for each rule and cause, and each deviation."""
    outcomes = {mode: _outcomes(results / f"{mode}.xml") for mode in MODES}
    report = json.loads((results / "enforce.json").read_text())
    found = {test["nodeid"]: test["violations"] for test in report["tests"]}
    yield {"name": project.name, "version": project.version, "tests": len(outcomes["off"]), "guarded": len(found)}
    for name in sorted(outcomes["off"] | outcomes["warn"]):
        was, now = outcomes["off"].get(name, "absent"), outcomes["warn"].get(name, "absent")
        if was != now:
            yield {"name": project.name, "outcome": name, "off": was, "warn": now}
    causes = Counter((v["rule"], v["cause"] or v["at"]) for violations in found.values() for v in violations)
    for (rule, cause), count in sorted(causes.items(), key=str):
        yield {"name": project.name, "rule": rule, "at": cause, "count": count}
    oracle = json.loads((results / "oracle.json").read_text())
    differing = Counter[tuple[str, str]]()
    for nodeid in found.keys() | oracle.keys():
        ours, theirs = {violation["rule"] for violation in found.get(nodeid, ())}, set(oracle.get(nodeid, ()))
        differing.update(("guard", rule) for rule in ours - theirs)
        differing.update(("oracle", rule) for rule in theirs - ours)
    for (who, rule), count in sorted(differing.items()):
        yield {"name": project.name, "only": who, "rule": rule, "count": count}


def seconds(results: Path) -> dict[str, float]:
    """Return the processor time of each mode."""
    return {mode: float((results / f"{mode}.seconds").read_text()) for mode in MODES}


def _source(project: Project, interpreter: Path) -> Path:
    folder = WORK / "sources" / f"{project.name}-{project.version}"
    if not folder.exists():
        archives = WORK / "archives"
        pip = [
            interpreter,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary=:all:",
            "--no-build-isolation",
        ]
        subprocess.run([*pip, f"--dest={archives}", f"{project.name}=={project.version}"], check=True)
        (archive,) = archives.glob(f"{project.name.replace('-', '?')}-{project.version}.tar.gz")
        unpacked = WORK / "sources" / f"{project.name}.partial"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (content,) = unpacked.iterdir()
        shutil.move(content, folder)
        unpacked.rmdir()
    return folder


def _outcomes(path: Path) -> dict[str, str]:
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = min(kinds, default="passed")
    return outcomes


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
