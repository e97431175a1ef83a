"""The user's lines on the stack, also of worker threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from torch import nn

import pytest_evalmode.guards
from pytest_evalmode.observe.source.user_lines import Caller, UserLines
from pytest_evalmode.trace import Site
from tests.nets import batch

HERE = Path(__file__).resolve()


class Probe(nn.Module):
    """Records the caller of its forward."""

    def __init__(self, user_lines: UserLines) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.user_lines = user_lines
        self.seen: list[Caller] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.user_lines.find_caller(sys._getframe(1)))
        return x * self.scale

    def line(self) -> int:
        """Return the first line of the function that called it last."""
        frame = self.seen[-1].frame
        assert frame is not None
        assert frame.f_code.co_filename == __file__
        return frame.f_code.co_firstlineno


@pytest.fixture
def probe() -> Probe:
    return Probe(UserLines())


def first_line(function: Callable[..., object]) -> int:
    line: int = function.__code__.co_firstlineno
    return line


def code_at(path: Path | str) -> CodeType:
    return compile("1\n2\n", str(path), "exec")


def test_a_site_is_relative_to_the_root(tmp_path: Path) -> None:
    file = tmp_path / "tests" / "test_it.py"
    file.parent.mkdir()
    file.write_text("import torch\nlogits = model(x)   \n")
    assert UserLines(tmp_path).site(code_at(file), 2) == Site("tests/test_it.py", 2, "logits = model(x)")


def test_without_a_root_any_file_is_user_code(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    site = UserLines().site(code_at(file), 1)
    assert site is not None
    assert site.file == str(file.resolve())
    assert UserLines(HERE.parent).site(code_at(file), 1) is None


@pytest.mark.parametrize(
    "file",
    [
        torch.__file__,
        threading.__file__,
        pytest.__file__,
        pytest_evalmode.guards.__file__,
        "<string>",
        "<frozen runpy>",
        "venv/lib/python3.11/site-packages/models/net.py",
        "/usr/lib/python3/dist-packages/net.py",
    ],
)
@pytest.mark.parametrize("root", [None, HERE.parent, Path("/")], ids=["script", "here", "everything"])
def test_libraries_are_not_user_code(file: str, root: Path | None) -> None:
    user_lines = UserLines(root)
    assert not user_lines.is_user_code(code_at(file))
    assert user_lines.site(code_at(file), 1) is None


def test_the_caller_is_the_innermost_user_frame(probe: Probe) -> None:
    def call() -> None:
        probe(batch())

    call()
    assert probe.line() == first_line(call)


def test_frames_of_torch_are_skipped(probe: Probe) -> None:
    def call() -> None:
        nn.Sequential(probe, nn.ReLU())(batch())

    call()
    assert probe.line() == first_line(call)
    assert not probe.seen[-1].by_functional_call


def test_functional_call_is_recognized(probe: Probe) -> None:
    def call() -> None:
        torch.func.functional_call(probe, {"scale": torch.zeros(1)}, (batch(),))

    call()
    assert probe.line() == first_line(call)
    assert probe.seen[-1].by_functional_call


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_is_recognized(probe: Probe) -> None:
    torch.jit.trace(  # type: ignore[no-untyped-call]
        probe, batch(), check_trace=False
    )
    assert all(caller.by_tracer for caller in probe.seen)
    probe(batch())
    assert not probe.seen[-1].by_tracer


def test_a_worker_without_user_code_has_the_line_of_the_opening_thread(probe: Probe) -> None:
    def call() -> None:
        thread = threading.Thread(target=probe, args=(batch(),))
        thread.start()
        thread.join()

    call()
    assert probe.line() == first_line(call)


def test_a_worker_with_user_code_has_its_own_line(probe: Probe) -> None:
    def work() -> None:
        probe(batch())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    assert probe.line() == first_line(work)


def test_the_search_for_a_line_ends_at_the_model() -> None:
    user_lines = UserLines()

    def inner() -> Site | None:
        return user_lines.find_line(sys._getframe(), model)

    model: FrameType = sys._getframe()
    site = inner()
    assert site is not None
    assert site.source == "return user_lines.find_line(sys._getframe(), model)"
    assert user_lines.find_line(model, model) is None


def test_other_active_threads_are_found() -> None:
    user_lines, begun, done = UserLines(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        done.wait()

    assert not user_lines.has_other_active_threads()
    worker = threading.Thread(target=work)
    worker.start()
    try:
        begun.wait()
        assert user_lines.has_other_active_threads()
    finally:
        done.set()
        worker.join()
    assert not user_lines.has_other_active_threads()
