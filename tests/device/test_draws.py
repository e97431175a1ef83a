"""Random draws from a device's generator in eval mode are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pytest_evalmode.observe.state import generators
from tests.nets import rules, watching

Forward = Callable[[Tensor], Tensor]


class Projection(nn.Module):
    """A model that applies a function to a projection."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.rest = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.fc(x))


def run(forward: Forward, device: torch.device, dtype: torch.dtype = torch.float32) -> set[str]:
    """Run a model twice, and return the rules that it broke."""
    net = Projection(forward).to(device, dtype).eval()
    with watching(net) as g, torch.no_grad():
        for _ in range(2):
            net(torch.ones(2, 8, 64, device=device, dtype=dtype))
    assert not g.window.failures
    return rules(g)


DRAWS: dict[str, Forward] = {
    "dropout": lambda t: F.dropout(t),
    "dropout with a small p": lambda t: F.dropout(t, 1e-4),
    "noise": lambda t: t + torch.randn_like(t),
    "noise in place": lambda t: t.clone().uniform_(),
    "a permutation": lambda t: t[:, torch.randperm(8, device=t.device)],
    "a sample": lambda t: t * torch.multinomial(t.softmax(-1)[0], 1)[None],
    "noise from the host": lambda t: t + torch.randn(64).to(t.device),
}

QUIET: dict[str, Forward] = {
    "dropout off": lambda t: F.dropout(t, training=False),
    "uninitialized": lambda t: t + torch.empty_like(t).zero_(),
    "a generator of its own": lambda t: torch.rand(8, 64, device=t.device, generator=torch.Generator(t.device)) + t,
}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_is_reported(device: torch.device, draw: str) -> None:
    assert run(DRAWS[draw], device) == {"random-forward"}


@pytest.mark.parametrize("act", QUIET)
def test_these_forwards_draw_nothing(device: torch.device, act: str) -> None:
    assert run(QUIET[act], device) == set()


def test_a_draw_with_a_restored_generator_is_clean(accelerator: torch.device) -> None:
    def forked(t: Tensor) -> Tensor:
        with torch.random.fork_rng(device_type=accelerator.type):
            return F.dropout(t)

    assert run(forked, accelerator) == set()


def test_reading_the_state_draws_nothing(device: torch.device) -> None:
    numbers = []
    for read in (lambda: None, generators.state):
        torch.manual_seed(0)
        torch.rand(1, device=device)
        read()
        numbers.append(torch.rand(3, device=device))
    assert torch.equal(*numbers)


# --- attention


def attention(backend: SDPBackend, dropout: float) -> Forward:
    def attend(t: Tensor) -> Tensor:
        heads = t.view(2, 8, 1, 64).transpose(1, 2)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(heads, heads, heads, dropout_p=dropout)

    return attend


BACKENDS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


@pytest.mark.parametrize("dropout", [0.5, 0.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_with_dropout_is_reported(device: torch.device, backend: str, dropout: float) -> None:
    if device.type == "cpu" and backend != "math":
        pytest.skip("needs an accelerator")
    broken = run(attention(BACKENDS[backend], dropout), device, torch.bfloat16)
    assert broken == ({"random-forward"} if dropout else set())


# --- recurrent networks, for whose dropout cuDNN has its own random state


class Recurrent(nn.Module):
    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 16, num_layers=2, dropout=0.5)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        if not self.always:
            out: Tensor = self.rnn(x)[0]
            return out
        state = x.new_zeros(2, x.shape[1], 16)
        weights: Any = self.rnn._flat_weights
        out, *_ = torch._VF.lstm(x, (state, state), weights, True, 2, 0.5, True, False, False)
        return out


def recur(net: nn.Module, device: torch.device) -> set[str]:
    with watching(net) as g, torch.no_grad():
        net(torch.ones(5, 3, 16, device=device))
    assert not g.window.failures
    return rules(g)


def test_an_lstm_in_eval_mode_is_clean(device: torch.device) -> None:
    assert recur(Recurrent().to(device).eval(), device) == set()


def test_an_lstm_in_training_mode_is_reported(device: torch.device) -> None:
    assert recur(Recurrent().to(device), device) == {"train-mode"}


def test_an_lstm_that_ignores_eval_mode_is_reported(device: torch.device, request: pytest.FixtureRequest) -> None:
    """Once seeded, cuDNN does not draw from a generator of torch, so the draw is not noticed."""
    net = Recurrent(always=True).to(device).eval()
    if device.type == "cuda":
        with torch.no_grad():
            net(torch.ones(5, 3, 16, device=device))  # seeds cuDNN
        request.applymarker(pytest.mark.xfail(reason="cuDNN draws from its own state", strict=True))
    assert recur(net, device) == {"random-forward"}


# --- compiled


@contextmanager
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("draws", [True, False], ids=["dropout", "dropout off"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_draw_of_a_compiled_model_is_reported(device: torch.device, mode: str, draws: bool) -> None:
    if device.type == "cpu" and mode != "default":
        pytest.skip("needs CUDA graphs")
    forward: Forward = lambda t: F.dropout(t.relu(), training=draws)  # noqa: E731
    with fresh():
        net = Projection(forward).to(device).eval()
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        options = {"mode": mode} if device.type == "cuda" else {}
        compiled = torch.compile(net, backend=backend, **options)  # type: ignore[call-overload]
        x = torch.ones(2, 8, 64, device=device)
        with torch.no_grad():
            for _ in range(3):
                expected = compiled(x).clone()
        with watching(net) as g, torch.no_grad():
            output = compiled(x).clone()
    assert not g.window.failures
    assert rules(g) == ({"random-forward"} if draws else set())
    assert draws or torch.equal(output, expected)
