"""The test suite of a public project, run with the plugin off, beside the oracle, warning and enforcing."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import tarfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecosystem.environments import ROOT, WORK, python, variables
from ecosystem.record import Row

SUITE = "suite-"
"""What the names of suites start with, beside those of libraries."""

MODES = {
    "off": ("--evalmode=off",),
    "warn": ("--evalmode=warn", "--evalmode-all"),
    "enforce": ("--evalmode=enforce", "--evalmode-all"),
    "oracle": ("--evalmode=off", "-p", "ecosystem.oracle"),
}
"""Each run of the tests and its options."""

GUARDED = ("warn", "enforce")

MODE_DEPENDENT = re.compile(r"Norm(?!al)|Drop|RNN|LSTM|GRU|Attention")
"""Classes that a row names: those that training mode may change."""


@dataclass(frozen=True)
class Project:
    """A project of `projects.toml`.

    Attributes:
        name: Its name in the registry.
        version: The pinned version of its sdist.
        requirements: What its tests need besides itself, all pinned.
        tests: Paths within the sdist.
        options: More options of pytest.
        environment: Environment variables that the tests need.
    """

    name: str
    version: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def projects() -> list[Project]:
    """Return all projects of `projects.toml`."""
    table = tomllib.loads((ROOT / "ecosystem" / "projects.toml").read_text())
    return [
        Project(
            name,
            row["version"],
            tuple(row["requirements"]),
            tuple(row["tests"]),
            tuple(row.get("options", ())),
            row.get("environment", {}),
        )
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
    for mode, options in MODES.items():
        if (results / f"{mode}.seconds").exists():
            continue
        command: list[str | Path] = [interpreter, "-m", "pytest", "--quiet", "--timeout=600", "--rootdir=."]
        command += ["-p", "no:cacheprovider"]
        command += ["-p", "ecosystem.seeds", *options]
        command += [f"--evalmode-report={results / mode}.json"] if mode in GUARDED else []
        environment = (
            variables()
            | project.environment
            | {
                "ECOSYSTEM_OUTCOMES": str(results / f"{mode}.outcomes.json"),
                "ECOSYSTEM_ORACLE": str(results / "oracle.json"),
            }
        )
        before = _processor_seconds()
        with open(results / f"{mode}.log", "w") as log:
            subprocess.run(
                [*command, *project.options, *project.tests], cwd=source, env=environment, stdout=log, stderr=log
            )
        (results / f"{mode}.seconds").write_text(f"{_processor_seconds() - before:.1f}")


def rows(project: Project, results: Path) -> Iterator[Row]:
    """Yield what the record has of a project.

    A row of totals, one for each test whose outcome the plugin changes, one for each rule, module or tensor and fix
    with the number of tests, and one for each rule on which the guard and the oracle disagree.
    """
    outcomes = {mode: _load(results / f"{mode}.outcomes.json") for mode in MODES}
    found = {mode: {test["nodeid"]: test for test in _load(results / f"{mode}.json")["tests"]} for mode in GUARDED}
    violations = {nodeid: test["violations"] for nodeid, test in found["warn"].items()}
    oracle = _load(results / "oracle.json")

    both = violations.keys() & outcomes["oracle"].keys()
    rules = {nodeid: {violation["rule"] for violation in violations[nodeid]} for nodeid in both}
    totals = {"tests": len(outcomes["off"]), "guarded": len(violations)}
    totals["judged"] = sum(len(rules[nodeid] | set(oracle.get(nodeid, ()))) for nodeid in both)
    yield {"name": project.name, "version": project.version, **totals}
    yield from _changed_outcomes(project.name, outcomes, {nodeid for nodeid, some in violations.items() if some})
    causes = Counter(cause for some in violations.values() for cause in set(map(_cause, some)))
    for (rule, at, fix), count in sorted(causes.items()):
        yield {"name": project.name, "rule": rule, "at": at, "fix": fix, "count": count}
    differing = Counter[tuple[str, str]]()
    for nodeid in both:
        ours, theirs = rules[nodeid], set(oracle.get(nodeid, ()))
        differing.update(("guard", rule) for rule in ours - theirs)
        differing.update(("oracle", rule) for rule in theirs - ours)
    for (who, rule), count in sorted(differing.items()):
        yield {"name": project.name, "only": who, "rule": rule, "count": count}


def seconds(results: Path) -> dict[str, float]:
    """Return the processor time of each mode."""
    return {mode: float((results / f"{mode}.seconds").read_text()) for mode in MODES}


def _changed_outcomes(name: str, outcomes: dict[str, dict[str, str]], violated: set[str]) -> Iterator[Row]:
    """Yield the tests whose outcome is another one than with the plugin off, and not because of a violation."""
    for nodeid in sorted(set().union(*outcomes.values())):
        off, *others = (outcomes[mode].get(nodeid, "absent") for mode in MODES)
        enforced = "failed" if nodeid in violated and off == "passed" else off
        expected = [off, enforced, off]
        if others != expected:
            yield {"name": name, "outcome": nodeid, "off": off} | dict(zip(list(MODES)[1:], others, strict=True))


def _cause(violation: dict[str, Any]) -> tuple[str, str, str]:
    """Return the rule, the class or tensor at fault and the fix, without what depends on the test."""
    fix = re.sub(r" \([^()]*(\([^()]*\)[^()]*)*\)", "", violation["remedy"]).partition(";")[0]
    fix = re.sub(r"[^\s`]+\.eval\(\)", "model.eval()", fix).replace(" before the first forward", "")
    fix = re.sub(r" (before the forward )?(at|after) \S+\.py:\d+.*", "", fix)
    if "trains" in fix:
        return violation["rule"], "", fix
    subject = violation["subjects"][0] if violation["subjects"] else violation["model"]
    kind = re.search(r"\((\w+)\)$", subject)
    at = kind[1] if kind else subject.rpartition(".")[2]
    if violation["rule"] in ("train-mode", "grad-mode") and not MODE_DEPENDENT.search(at):
        at = ""  # its parameters require grad: one cause, whatever the class
    # What wrote to a tensor is not always found: that depends on when models are collected.
    return violation["rule"], at, "" if violation["rule"] == "state-mutated" else fix


def _source(project: Project, interpreter: Path) -> Path:
    folder = WORK / "sources" / f"{project.name}-{project.version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / "pytest.ini").touch()  # or a project without a configuration is run with that of ours
        archives = WORK / "archives"
        pip: list[str | Path] = [interpreter, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        subprocess.run([*pip, f"--dest={archives}", f"{project.name}=={project.version}"], check=True)
        (archive,) = archives.glob(f"{project.name.replace('-', '?')}-{project.version}.tar.gz")
        unpacked = WORK / "sources" / f"{project.name}.partial"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (content,) = unpacked.iterdir()
        shutil.move(content, folder)
        unpacked.rmdir()
    return folder


def _load(path: Path) -> Any:
    return json.loads(path.read_text())


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
