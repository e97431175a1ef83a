"""The devices that this machine has, and a table of what was run on each.  `make device` runs these tests alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pytest_evalmode.observe.state import devices

HERE = Path(__file__).parent
HOST = torch.device("cpu")
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)
DEVICES = [HOST] if ACCELERATOR is None else [HOST, ACCELERATOR]
WAYS = ("by torch", "by Triton")
"""How sums are found on an accelerator."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # what other versions of torch warn of is no failure here
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that there is."""
    found: torch.device = request.param
    return found


@pytest.fixture
def accelerator(device: torch.device) -> torch.device:
    """Each device that is not the host."""
    if device == HOST:
        pytest.skip("the host has no memory of another device's")
    return device


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """CUDA, or ROCm that goes by its name."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")
    return device


PLACES = [(HOST, ""), *((ACCELERATOR, way) for way in WAYS if ACCELERATOR)]


@pytest.fixture(params=PLACES, ids=[" ".join(filter(None, (str(device), way))) for device, way in PLACES])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Each device that there is, and there each way to sum up what lies on it."""
    found: torch.device
    found, way = request.param
    if way:
        here = torch.ones(1, device=found).device
        if way == "by Triton" and devices._triton_reader(here) is None:
            pytest.skip("Triton is not there, or its kernel does not find what torch's operators find")
        monkeypatch.setattr(devices, "MIN_KERNEL_BYTES", 0 if way == "by Triton" else 1 << 62)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One row a kind, one column a device, where these tests ran alone."""
    told: dict[str, dict[str, str]] = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, []):
            if not report.nodeid.startswith("tests/device/"):
                return
            kind, where = _kind_and_place(report.nodeid.partition("::")[2])
            told.setdefault(kind, {})[where] = outcome + _because(report)
    places = sorted({where for row in told.values() for where in row})
    if not places:
        return
    terminalreporter.section(f"devices, torch {torch.__version__}, {', '.join(map(_named, DEVICES))}")
    width = max(map(len, told))
    terminalreporter.line(f"{'':<{width}}  " + "  ".join(f"{where:<14}" for where in places))
    for kind, row in sorted(told.items()):
        cells = (row.get(where, "") for where in places)
        terminalreporter.line((f"{kind:<{width}}  " + "  ".join(f"{cell:<14}" for cell in cells)).rstrip())


def _kind_and_place(name: str) -> tuple[str, str]:
    """`test_a[cpu-half]` is the kind `a, half` on `cpu`."""
    kind, _, rest = name.removeprefix("test_").partition("[")
    parts = rest.removesuffix("]").split("-")
    names = {str(device) for device in DEVICES}
    where = next((part for part in parts if part.split(" ")[0] in names), "")
    return ", ".join([kind.replace("_", " "), *(part for part in parts if part and part != where)]), where


def _because(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return f": {report.longrepr[2].removeprefix('Skipped: ')}"
    return ""


def _named(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda}, {torch.cuda.device_count()} of them)"
