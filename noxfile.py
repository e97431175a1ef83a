"""The versions that are promised, tried: `make matrix`, or `nox -s NAME` for one of them.

Each session installs the wheel or the sdist into an empty environment, runs the tests that need little else, and
removes the environment.  Those of `torches` take several GB each, and run only when they are named.

A Python is found if it is on the PATH or pyenv has it (`pyenv install 3.12`); the last lines of the run name each
session that was skipped for want of its Python.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

TESTS = [
    "tests/rules",
    "tests/session",
    "tests/report",
    "tests/observe/source",
    "tests/observe/calls",
    "tests/observe/forwards",
    "tests/ecosystem/test_torchvision.py",
    "tests/test_guards.py",
    "tests/test_evaluation.py",
]
NEEDS = [
    "anyio",
    "hypothesis",
    "jinja2",
    "jsonschema",
    "numpy",
    "pytest-asyncio",
    "pytest-html",
    "pytest-randomly",
    "pytest-rerunfailures",
    "pytest-subtests",
    "pytest-torch",
    "pytest-xdist",
    "safetensors",
]
LENIENT = ["--override-ini=addopts=", "-Wignore::pytest.PytestConfigWarning"]
"""The oldest pytest brings plugins that do not know all options of the newest ones."""
SCORE = os.environ.get("EVALMODE_SCORE")
"""A script that scores the plugin on a catalogue of faults, to be run as well."""

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
os.environ.setdefault("PYENV_VERSION", ":".join(PYTHONS))  # else pyenv shows one of those it has; nobody else reads it

nox.options.sessions = ["pythons", "oldest_pytest"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "no"


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Each Python, the newest pytest."""
    _try(session, "sdist", "torch==2.13.0", "pytest")


@nox.session(python="3.11")
def oldest_pytest(session: nox.Session) -> None:
    """The oldest pytest that is promised."""
    _try(session, "wheel", "torch==2.13.0", "pytest==8.0.0")


@nox.session(python="3.11")
@nox.parametrize("torch", ["2.7.1", "2.9.1", "2.14.1", "2.15.0"])
def torches(session: nox.Session, torch: str) -> None:
    """Other torches, one at a time, with the torchvision that fits."""
    _try(session, "wheel", f"torch=={torch}", "pytest", "torchvision", "timm")


def _try(session: nox.Session, package: str, *versions: str) -> None:
    folder = Path(session.virtualenv.location, "tried")  # not nox's own: the tests' inner suites would lie below it
    session.install("--quiet", "build")
    session.run("python", "-m", "build", f"--{package}", "--outdir", str(folder / "dist"), ".", silent=True)
    session.install("--quiet", *map(str, (folder / "dist").iterdir()), *versions, *NEEDS)
    for part in ("tests", "examples"):
        shutil.copytree(part, folder / part, dirs_exist_ok=True)
    shutil.copy("pyproject.toml", folder)
    session.chdir(folder)  # where the package is the one that was installed
    session.run("python", "-c", "import pytest, torch; print(pytest.__version__, torch.__version__)")
    if SCORE:
        session.run("python", SCORE)
    session.run("python", "-m", "pytest", "-q", *LENIENT, *(session.posargs or TESTS))
    shutil.rmtree(session.virtualenv.location)
