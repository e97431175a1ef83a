from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_evalmode.observe.state import devices, generators

DRAWS: dict[str, Callable[[], object]] = {
    "one number": lambda: torch.rand(1),
    "one bit": lambda: torch.bernoulli(torch.tensor(1.0)),
    "a dropout of almost nothing": lambda: F.dropout(torch.ones(1), 1e-9),
    "a permutation": lambda: torch.randperm(2),
    "initial weights": lambda: nn.Linear(1, 1),
    "in place": lambda: torch.empty(1).normal_(),
    "another seed": lambda: torch.manual_seed(torch.initial_seed() + 1),
    "the same seed": lambda: torch.manual_seed(torch.initial_seed()) if torch.rand(1) < 2 else None,
}
QUIET: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "no elements": lambda: torch.rand(0),
    "arithmetic": lambda: torch.ones(3) * 2,
    "uninitialized": lambda: torch.empty(3),
    "a generator of its own": lambda: torch.rand(3, generator=torch.Generator()),
    "dropout in eval": lambda: nn.Dropout().eval()(torch.ones(3)),
    "get_rng_state": lambda: torch.get_rng_state(),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_changes_the_state(draw: Callable[[], object]) -> None:
    torch.rand(1)
    before = generators.state()
    draw()
    assert not generators.is_unchanged(before, generators.state())


@pytest.mark.parametrize("act", QUIET.values(), ids=QUIET)
def test_these_acts_do_not_change_the_state(act: Callable[[], object]) -> None:
    before = generators.state()
    act()
    assert generators.is_unchanged(before, generators.state())


def test_a_restored_state_is_unchanged() -> None:
    before = generators.state()
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
        assert not generators.is_unchanged(before, generators.state())
    assert generators.is_unchanged(before, generators.state())


def test_a_restored_state_is_unchanged_although_a_normal_was_cached_in_between() -> None:
    saved, before = torch.get_rng_state(), generators.state()
    torch.randn(1, dtype=torch.float64)
    assert not generators.is_unchanged(before, generators.state())
    torch.set_rng_state(saved)
    assert generators.is_unchanged(before, generators.state())


def test_using_a_cached_normal_changes_the_state() -> None:
    torch.randn(1, dtype=torch.float64)
    before = generators.state()
    torch.randn(1, dtype=torch.float64)
    assert not generators.is_unchanged(before, generators.state())


def test_reading_the_state_draws_nothing_and_no_mode_sees_it() -> None:
    class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(func)

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(func)

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with Operators(), Functions():  # type: ignore[no-untyped-call]
        assert generators.is_unchanged(generators.state(), generators.state())
    assert torch.equal(torch.rand(3), expected)


# --- accelerators


def one(generator: torch.Generator) -> SimpleNamespace:
    """Return a module with one generator, like `torch.mps`."""
    return SimpleNamespace(get_rng_state=generator.get_state)


def several(generator: torch.Generator) -> SimpleNamespace:
    """Return a module with one generator per device, like `torch.cuda` and `torch.xpu`."""
    return SimpleNamespace(default_generators=(torch.Generator(), generator), get_rng_state=None)


@pytest.mark.parametrize("accelerator", [one, several])
def test_a_draw_changes_the_state_of_an_accelerator(
    accelerator: Callable[[torch.Generator], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator()
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: accelerator(generator))
    before = generators.state()
    assert generators.is_unchanged(before, generators.state())
    torch.rand(1, generator=generator)
    assert not generators.is_unchanged(before, generators.state())
    assert generators.is_unchanged(before[:1], generators.state())


def test_a_generator_with_an_offset_is_read_by_seed_and_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new seed and a draw are both noticed, and no tensor is made."""
    values = [1, 0]
    generator = SimpleNamespace(initial_seed=lambda: values[0], get_offset=lambda: values[1])
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: SimpleNamespace(default_generators=(generator,)))
    before = generators.state()
    assert generators.is_unchanged(before, generators.state())
    for now in ([2, 0], [1, 4]):
        values[:] = now
        assert not generators.is_unchanged(before, generators.state())


def captured() -> Tensor:
    raise RuntimeError("Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture.")


@pytest.mark.parametrize("accelerator", [SimpleNamespace(), SimpleNamespace(get_rng_state=captured)])
def test_generators_that_cannot_be_read_count_as_unchanged(
    accelerator: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generators.state()
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: accelerator)
    assert generators.is_unchanged(expected, generators.state())


@pytest.mark.parametrize("is_used", [True, False])
@pytest.mark.parametrize("function", ["is_initialized", "is_available"])
def test_an_accelerator_is_in_use_once_it_is_initialized(
    function: str, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = SimpleNamespace(is_available=lambda: True)
    setattr(accelerator, function, lambda: is_used)
    device = torch.device("cuda")
    monkeypatch.setattr(devices, "current_accelerator", lambda: device)
    monkeypatch.setattr(torch, "cuda", accelerator)
    monkeypatch.setattr(torch, "device", None)  # a test may patch it
    result: object = devices.accelerator_in_use()
    assert result is (accelerator if is_used else None)


def test_the_first_use_of_a_device_is_not_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    before = generators.state()
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: one(torch.Generator()))
    assert len(generators.state()) > len(before)
    assert generators.is_unchanged(before, generators.state())
    torch.rand(1)
    assert not generators.is_unchanged(before, generators.state())
