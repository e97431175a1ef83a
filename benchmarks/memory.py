"""The memory that a guard needs in addition to the model.

Measured as the peak resident set size that the operating system reports: tracemalloc does not see torch's memory.
Runs in a separate process, because memory that another benchmark freed could be reused without being counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.timing import Row

PROCESSES = 5


def run() -> Iterator[Row]:
    if not Path("/proc/self/clear_refs").exists():
        return  # only Linux lets a process reset its peak
    shares = [float(_measured()) for _ in range(PROCESSES)]
    yield Row("ResNet-50: extra peak memory, relative to the model's size", 100 * median(shares), "%", bar=5, aim=3)


def _measured() -> str:
    return subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True).stdout


def extra() -> float:
    """Return the peak memory of guarding a ResNet-50 once, relative to its size.

    A small model is guarded first, so that loading the code does not count.
    """
    from benchmarks.models import layers, resnet50
    from benchmarks.state import guard

    guard(layers(3))
    model = resnet50()
    size: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    guard(model)
    return (_status("VmHWM") - before) / size


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(extra())
