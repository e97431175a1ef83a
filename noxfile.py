"""The versions that are promised, tried: `make matrix`, or `nox -s NAME` for one of them.

Each session builds the wheel, installs it into an empty environment and runs the tests that need little else.  Those of
`cuda` take several GB each, and run only when they are named.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
TESTS = [
    "tests/session",
    "tests/rules",
    "tests/report",
    "tests/observe/source",
    "tests/observe/calls",
    "tests/test_guards.py",
    "tests/test_evaluation.py",
]
NEEDS = ["numpy", "safetensors", "hypothesis", "anyio", "pytest-xdist", "pytest-asyncio", "pytest-rerunfailures"]
SCORE = os.environ.get("EVALMODE_SCORE")
"""A script that scores the plugin on a catalogue of faults, to be run as well."""

nox.options.sessions = ["pythons", "oldest_pytest"]
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "no"


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Each Python, the newest pytest."""
    _try(session, "torch==2.13.0", "pytest")


@nox.session(python="3.11")
def oldest_pytest(session: nox.Session) -> None:
    """The oldest pytest that is promised."""
    _try(session, "torch==2.13.0", "pytest==8.0.0")


@nox.session(python="3.11")
@nox.parametrize("torch", ["2.7.1", "2.9.1", "2.14.1"])
def cuda(session: nox.Session, torch: str) -> None:
    """Other torches, one at a time; the newest with the libraries of models."""
    more = ["torchvision", "timm"] if torch == "2.14.1" else []
    _try(session, f"torch=={torch}", "pytest", *more)


def _try(session: nox.Session, *versions: str) -> None:
    folder = Path(session.create_tmp())
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), ".")
    session.install("--quiet", *map(str, folder.glob("*.whl")), *versions, *NEEDS)
    shutil.copytree("tests", folder / "tests", dirs_exist_ok=True)
    shutil.copy("pyproject.toml", folder)
    session.chdir(folder)  # where the package is the one that was installed
    session.run("python", "-c", "import pytest, torch; print(pytest.__version__, torch.__version__)")
    if SCORE:
        session.run("python", SCORE)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or TESTS))
