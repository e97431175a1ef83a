"""The cost of the plugin in a suite without guarded tests.

Measured in CPU seconds, so that waiting for the processor does not count.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.timing import Measure, Row, interleaved

SUITE = """
import pytest

@pytest.mark.parametrize("i", range(100))
def test_nothing(i):
    pass
"""


def run() -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text(SUITE, encoding="utf-8")
        with_plugin = _python(folder, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_evalmode.plugin")
        without = _python(folder, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:evalmode")
        times = interleaved({"with": with_plugin, "without": without}, seconds=20)
        yield Row("100 unmarked tests", 1e3 * times.extra("with", "without"), "ms", bar=10, aim=5)

        plugin = _python(folder, "-c", "import pytest, pytest_evalmode.plugin")
        times = interleaved({"plugin": plugin, "pytest": _python(folder, "-c", "import pytest")}, seconds=20)
        yield Row("importing the plugin", 1e3 * times.extra("plugin", "pytest"), "ms", aim=20)


def _python(folder: str, *arguments: str) -> Measure:
    """Return a measurement of a new interpreter that runs with these arguments and loads no other plugins.

    It writes bytecode to a cache, like an installed package.
    """
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "",
    }

    def run() -> float:
        before = _cpu_seconds_of_children()
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=True)
        return _cpu_seconds_of_children() - before

    return run


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
