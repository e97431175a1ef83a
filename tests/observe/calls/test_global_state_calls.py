"""The line that changed torch's global state, or a shared model, is reported with the leak."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import torch
from torch import (
    Tensor,
    nn,
    set_default_device,
    set_default_dtype,
    set_float32_matmul_precision,
    use_deterministic_algorithms,
)
from torch.backends import cudnn  # by their names, as many import them

from pytest_evalmode import Guard
from tests.nets import Net, batch, only, watching

THREADS = torch.get_num_threads()


def restore() -> None:
    set_default_dtype(torch.float32)
    set_default_device(None)
    torch.set_num_threads(THREADS)
    set_float32_matmul_precision("highest")
    use_deterministic_algorithms(mode=False)
    torch.set_grad_enabled(True)
    torch.set_anomaly_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    cudnn.benchmark = False


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    restore()


def dtype() -> None:
    set_default_dtype(torch.float64)


def device() -> None:
    set_default_device("meta")


def threads() -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


def precision() -> None:
    set_float32_matmul_precision("medium")


def deterministic() -> None:
    use_deterministic_algorithms(mode=True)


def grad_mode() -> None:
    torch.set_grad_enabled(False)


def anomaly() -> None:
    torch.autograd.set_detect_anomaly(True)


def benchmark() -> None:
    cudnn.benchmark = True


def tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def restore_and_set_again() -> None:
    with torch.set_grad_enabled(False):
        pass
    torch.set_grad_enabled(False)


def set_before_torch_sets_it_itself() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    torch.set_grad_enabled(False)
    optimizer.step()


SETTERS = [dtype, device, threads, precision, deterministic, grad_mode, anomaly, benchmark, tf32]


def source(g: Guard) -> str:
    violation = only(g, "global-leaked")
    return violation.at.source if violation.at else ""


@pytest.mark.parametrize("setter", SETTERS)
def test_the_line_that_changed_a_flag_is_reported(setter: Callable[[], None]) -> None:
    with watching(strict=True) as g:
        setter()
    assert source(g) == inspect.getsource(setter).splitlines()[1].strip()


@pytest.mark.parametrize("setter", [restore_and_set_again, set_before_torch_sets_it_itself])
def test_the_last_line_that_changed_a_flag_is_reported(setter: Callable[[], None]) -> None:
    with watching(strict=True) as g:
        setter()
    violation = only(g, "global-leaked")
    assert violation.at is not None
    assert violation.at.line == setter.__code__.co_firstlineno + (3 if setter is restore_and_set_again else 2)


@pytest.mark.parametrize("setter", SETTERS)
def test_a_restored_flag_is_not_a_leak(setter: Callable[[], None]) -> None:
    with watching(strict=True) as g:
        setter()
        restore()
    assert g.violations == []


def test_no_line_is_guessed_for_a_change_that_was_not_observed() -> None:
    with watching(strict=True) as g:
        with torch.set_grad_enabled(False):
            pass
        torch.no_grad().__enter__()
    assert source(g) == ""


def test_all_lines_are_reported() -> None:
    with watching(strict=True) as g:
        set_default_dtype(torch.float64)
        cudnn.benchmark = True
    violation = only(g, "global-leaked")
    assert violation.at is not None
    assert violation.at.source == "set_default_dtype(torch.float64)"
    assert len(violation.details["also_at"]) == 1
    assert violation.finding.startswith(
        "torch default_dtype changed from float32 to float64; torch cudnn.benchmark changed"
    )


def test_setters_are_patched_only_in_a_strict_window() -> None:
    before = torch._C._set_default_dtype, torch.autograd.grad_mode.set_grad_enabled.__init__
    with watching(strict=True):
        pass
    with watching():
        assert (torch._C._set_default_dtype, torch.autograd.grad_mode.set_grad_enabled.__init__) == before


def hook(module: nn.Module, args: Any, output: Tensor) -> None: ...


def switch(model: Net) -> None:
    model.drop.train()


def freeze(model: Net) -> None:
    model.requires_grad_(False)


def add_hook(model: Net) -> None:
    model.head.register_forward_hook(hook)


def accumulate_gradients(model: Net) -> None:
    model(batch()).sum().backward()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (switch, "model.drop.train()"),
        (freeze, "model.requires_grad_(False)"),
        (add_hook, "def hook(module: nn.Module, args: Any, output: Tensor) -> None: ..."),
        (accumulate_gradients, "model(batch()).sum().backward()"),
    ],
)
def test_the_line_that_changed_a_model_is_reported(change: Callable[[Net], None], line: str) -> None:
    model = Net().eval()
    with watching(model, strict=True, allow="grad-mode" if change is accumulate_gradients else ()) as g:
        change(model)
    violation = only(g, "model-leaked")
    assert violation.at is not None
    assert violation.at.source == line


def test_the_line_that_left_a_model_in_eval_mode_is_reported() -> None:
    model = Net()
    with watching(model, strict=True) as g:
        model.eval()
    violation = only(g, "model-leaked")
    assert violation.at is not None
    assert violation.at.source == "model.eval()"


def load(model: nn.Module) -> None:
    model.load_state_dict(Net().state_dict())


def convert(model: nn.Module) -> None:
    model.double()


def write(model: nn.Module) -> None:
    next(model.parameters()).mul_(2)


@pytest.mark.parametrize(
    ("change", "line"), [(load, "model.load_state_dict(Net().state_dict())"), (convert, "model.double()")]
)
def test_the_line_that_wrote_to_a_whole_model_is_reported(change: Callable[[nn.Module], None], line: str) -> None:
    model = Net().eval()
    with torch.no_grad(), watching() as g:
        model(batch())
        change(model)
    violation = only(g, "state-mutated")
    assert violation.since is not None
    assert violation.since.source == line
    assert f"call {'load_state_dict' if change is load else 'double'}() before" in violation.remedy


def test_each_of_two_writes_is_reported_with_its_line() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad(), watching() as g:
        model(batch())
        model[0].load_state_dict(nn.Linear(4, 4).state_dict())
        model[1].double()
    lines = [violation.since.source for violation in g.violations if violation.since]
    assert lines == ["model[0].load_state_dict(nn.Linear(4, 4).state_dict())", "model[1].double()"]


@pytest.mark.parametrize("others", [(), (load,), (convert,)])
def test_no_line_is_guessed_for_a_write_to_one_tensor(others: tuple[Callable[[nn.Module], None], ...]) -> None:
    model = Net().eval()
    other = Net().eval()
    with torch.no_grad(), watching() as g:
        model(batch())
        for change in others:
            change(other)
        write(model)
    violation = only(g, "state-mutated")
    assert violation.since is None
    assert violation.remedy.startswith("find the code that wrote to it")


def test_a_load_before_the_first_forward_is_not_a_change() -> None:
    model = Net().eval()
    with torch.no_grad(), watching() as g:
        load(model)
        convert(model)
        model.float()
        model(batch())
    assert g.violations == []


def _stream(model: nn.Module) -> Generator[Tensor, None, None]:
    with torch.no_grad():
        for _ in range(3):
            yield model(torch.ones(1, 4))


def _stream_outside(model: nn.Module) -> Generator[Tensor, None, None]:
    for _ in range(3):
        with torch.no_grad():
            out = model(torch.ones(1, 4))
        yield out


def test_a_context_around_a_yield_is_named_with_its_line() -> None:
    model, stream = nn.Linear(4, 2).eval(), None
    try:
        with watching(strict=True) as g:
            stream = _stream(model)
            next(stream)
        violation = only(g, "global-leaked")
        assert violation.at is not None
        assert violation.at.source == "with torch.no_grad():"
        assert "yield" in violation.remedy
    finally:
        assert stream is not None
        stream.close()
        torch.set_grad_enabled(True)


def test_a_context_that_ends_before_the_yield_is_clean() -> None:
    stream = _stream_outside(nn.Linear(4, 2).eval())
    with watching(strict=True) as g:
        next(stream)
    assert g.violations == []
    stream.close()
