"""Fixtures for the devices of this machine, and a table of results per device.  `make device` runs only these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
HOST = torch.device("cpu")
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)
DEVICES = [HOST] if ACCELERATOR is None else [HOST, ACCELERATOR]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # warnings of other versions of torch are not failures
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    device: torch.device = request.param
    return device


@pytest.fixture
def accelerator(device: torch.device) -> torch.device:
    """Each device except the host."""
    if device == HOST:
        pytest.skip("needs an accelerator")
    return device


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """CUDA, or ROCm, which uses the same name."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one row per test and one column per device, if only these tests ran."""
    table: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, []):
            if not report.nodeid.startswith("tests/device/"):
                return
            name, where = _name_and_place(report.nodeid.partition("::")[2])
            table.setdefault(name, {})[where] = outcome + _reason(report)
    places = sorted({where for row in table.values() for where in row})
    if not places:
        return
    terminalreporter.section(f"devices, torch {torch.__version__}, {', '.join(map(_describe, DEVICES))}")
    width = max(map(len, table))
    terminalreporter.line(f"{'':<{width}}  " + "  ".join(f"{where:<14}" for where in places))
    for name, row in sorted(table.items()):
        cells = (row.get(where, "") for where in places)
        terminalreporter.line((f"{name:<{width}}  " + "  ".join(f"{cell:<14}" for cell in cells)).rstrip())


def _name_and_place(test: str) -> tuple[str, str]:
    """Split `test_a[cpu-half]` into `a, half` and `cpu`."""
    name, _, rest = test.removeprefix("test_").partition("[")
    parts = rest.removesuffix("]").split("-")
    names = {str(device) for device in DEVICES}
    where = next((part for part in parts if part.split(" ")[0] in names), "")
    return ", ".join([name.replace("_", " "), *(part for part in parts if part and part != where)]), where


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return f": {report.longrepr[2].removeprefix('Skipped: ')}"
    return ""


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda}, {torch.cuda.device_count()} of them)"
