"""`assert_repeatable` of a function: what differs, which line drew random numbers, and what it leaves behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import HygieneError
from pytest_evalmode.probes import assert_repeatable
from tests.nets import Net, batch

DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@dataclass
class Report:
    accuracy: float
    outputs: Tensor


def evaluate(model: nn.Module, data: Tensor) -> Report:
    outputs = model(data)
    return Report(float((outputs > 0).float().mean()), outputs)


def dithered(data: Tensor) -> dict[str, Any]:
    return {"n": len(data), "mean": [0.0, float((data + torch.rand_like(data)).mean())]}


def shuffled(data: Tensor) -> Tensor:
    return data[torch.randperm(len(data))].cumsum(0)


def sampled(data: Tensor) -> float:
    return float(data[random.randrange(len(data)), 0])


def augmented(data: Tensor) -> Any:
    return data.numpy() + np.random.rand(4)


def initialized(data: Tensor) -> Tensor:
    output: Tensor = nn.Linear(4, 2).eval()(data)
    return output


DRAWS: dict[Callable[[Tensor], Any], tuple[str, str]] = {
    dithered: ("result['mean'][1]", "torch.rand_like"),
    shuffled: ("result by up to", "torch.randperm"),
    sampled: ("result ", "random.randrange"),
    augmented: ("result by up to", "np.random.rand"),
    initialized: ("result by up to", "nn.Linear(4, 2)"),
}


@pytest.mark.parametrize(("function", "expected"), DRAWS.items(), ids=[each.__name__ for each in DRAWS])
def test_random_data_is_reported_with_its_line(function: Callable[[Tensor], Any], expected: tuple[str, str]) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_repeatable(function, DATA)
    message = str(caught.value)
    assert expected[0] in message
    assert "test_repeatable_functions.py" in message
    assert expected[1] in message


def test_a_counter_is_reported_without_a_line() -> None:
    calls: list[int] = []

    def counts() -> int:
        calls.append(1)
        return len(calls)

    with pytest.raises(AssertionError, match=r"result 1 -> 2; no user code drew random numbers"):
        assert_repeatable(counts)


def seeded(data: Tensor) -> Tensor:
    torch.manual_seed(0)
    return data + torch.rand(4)


def own_generator(data: Tensor) -> Tensor:
    return data + torch.rand(4, generator=torch.Generator().manual_seed(0))


REPEATABLE: dict[str, Callable[[], None]] = {
    "an evaluation": lambda: assert_repeatable(evaluate, Net(), DATA),
    "by name": lambda: assert_repeatable(evaluate, model=Net(), data=DATA),
    "it seeds itself": lambda: assert_repeatable(seeded, DATA),
    "its own generator": lambda: assert_repeatable(own_generator, DATA),
    "within a tolerance": lambda: assert_repeatable(dithered, DATA, atol=1.0),
    "text, None and NaN": lambda: assert_repeatable(lambda: {"a": None, "b": ["x"], "c": float("nan")}),
    "a bound method": lambda: assert_repeatable(DATA.sum),
    "a model within a tolerance": lambda: assert_repeatable(Net(), batch(), rtol=1e-6),
}


@pytest.mark.parametrize("run", REPEATABLE.values(), ids=REPEATABLE)
def test_these_are_repeatable(run: Callable[[], None]) -> None:
    run()


@pytest.mark.parametrize("results", [({"a": []}, {"a": [], "b": []}), ([], {}), ([[]], [])])
def test_another_structure_without_values_is_reported(results: tuple[Any, Any]) -> None:
    remaining = list(results)
    with pytest.raises(AssertionError):
        assert_repeatable(lambda: remaining.pop(0))


def test_a_difference_beyond_the_tolerance_is_reported() -> None:
    with pytest.raises(AssertionError, match=r"\['mean'\]\[1\]"):
        assert_repeatable(dithered, DATA, atol=1e-9)


def test_the_models_and_generators_stay_as_they_were() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for function in (dithered, sampled, augmented):
        with pytest.raises(AssertionError):
            assert_repeatable(lambda m, x, f=function: (f(x), m.train()(x)), model, DATA)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]


def test_inference_that_is_not_clean_is_reported() -> None:
    model = Net()
    with pytest.raises(HygieneError, match="train-mode"):
        assert_repeatable(lambda x: float(model.train()(x).shape[0]), DATA)


def test_what_cannot_be_called_is_an_error() -> None:
    with pytest.raises(TypeError, match="assert_repeatable"):
        assert_repeatable(3)  # type: ignore[arg-type]
