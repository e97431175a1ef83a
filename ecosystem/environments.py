"""One virtual environment for each pinned torch, under `.ecosystem/environments`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".ecosystem"
TOOLS = ("pytest==9.1.1", "pytest-timeout==2.4.0", "numpy==2.4.6")


def python(requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment that has these packages, and install those that it lacks.

    The package under test is installed editable, so that a later run always has the last code.

    Args:
        requirements: Pinned packages, torch first: those with the same torch share an environment.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    folder = WORK / "environments" / requirements[0].replace("==", "-")
    interpreter, record = folder / "bin" / "python", folder / "requirements.txt"
    if not interpreter.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    installed = record.read_text().split() if record.exists() else []
    missing = [name for name in (*requirements, *TOOLS) if name not in installed]
    if missing:
        pip: list[str | Path] = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *missing, requirements[0]], check=True)  # or a package may bring another torch
        subprocess.run([*pip, "--editable", ROOT], check=True)
        record.write_text("\n".join(installed + missing))
    return interpreter


def variables() -> dict[str, str]:
    """Return the environment variables of a run: one thread, no network, no color."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
