"""Tests with the supported versions: `make matrix`, or `nox -s NAME` for one session.

Each session installs the wheel or the sdist into an empty environment, runs the tests that need few other packages, and
removes the environment.  The `torches` sessions need several GB each and run only if they are named.

A Python is found if it is on the PATH or installed by pyenv (`pyenv install 3.12`).  The last lines of the run list the
sessions that were skipped because their Python is missing.
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
    "tests/observe/model_code",
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
"""Options for the oldest pytest, whose plugins do not support all options of the newest versions."""
SCORE = os.environ.get("EVALMODE_SCORE")
"""The path of a script that scores the plugin on a catalog of faults.  If set, each session runs it."""

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
os.environ.setdefault("PYENV_VERSION", ":".join(PYTHONS))  # without it, pyenv offers only one version

nox.options.sessions = ["pythons", "oldest_pytest"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "no"


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Test each Python with the newest pytest."""
    _test(session, "sdist", "torch==2.13.0", "pytest")


@nox.session(python="3.11")
def oldest_pytest(session: nox.Session) -> None:
    """Test the oldest supported pytest."""
    _test(session, "wheel", "torch==2.13.0", "pytest==8.0.0")


@nox.session(python="3.11")
@nox.parametrize("torch", ["2.7.1", "2.9.1", "2.14.1", "2.15.0"])
def torches(session: nox.Session, torch: str) -> None:
    """Test another torch, with the matching torchvision."""
    _test(session, "wheel", f"torch=={torch}", "pytest", "torchvision", "timm")


def _test(session: nox.Session, package: str, *versions: str) -> None:
    folder = Path(session.virtualenv.location, "tested")  # not nox's own folder: inner test suites run here
    session.install("--quiet", "build")
    session.run("python", "-m", "build", f"--{package}", "--outdir", str(folder / "dist"), ".", silent=True)
    session.install("--quiet", *map(str, (folder / "dist").iterdir()), *versions, *NEEDS)
    for part in ("tests", "examples"):
        shutil.copytree(part, folder / part, dirs_exist_ok=True)
    shutil.copy("pyproject.toml", folder)
    session.chdir(folder)  # so that the installed package is imported
    session.run("python", "-c", "import pytest, torch; print(pytest.__version__, torch.__version__)")
    if SCORE:
        session.run("python", SCORE)
    session.run("python", "-m", "pytest", "-q", *LENIENT, *(session.posargs or TESTS))
    shutil.rmtree(session.virtualenv.location)
