"""One virtual environment for each library or project, with pinned packages, under `.ecosystem/environments`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".ecosystem"


def python(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the interpreter of an environment, which is made if its requirements have changed.

    The package under test is installed editable, so that a later run always has the last code.

    Args:
        name: A folder name.
        requirements: What `pip install` gets, all pinned.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    folder = WORK / "environments" / name
    interpreter, done = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        subprocess.run([*pip, "--editable", ROOT], check=True)
        done.write_text(wanted)
    return interpreter


def variables() -> dict[str, str]:
    """Return the environment variables of a run: one thread, no network, no color."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
