"""Guarding changes nothing about the code that it guards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode import guard
from tests.nets import Net, batch, watching

pytestmark = pytest.mark.usefixtures("fresh")


class Sequence(nn.Module):
    """Returns the first output of a recurrent or attention layer."""

    def __init__(self, layer: nn.Module, *further: Any) -> None:
        super().__init__()
        self.layer = layer
        self.further = further

    def forward(self, x: Tensor) -> Tensor:
        args = (x, x) if isinstance(self.layer, nn.MultiheadAttention) else ()
        out: Tensor = self.layer(x, *args)[0]
        return out


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Net(), (8, 4)),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)),
        (2, 3, 8, 8),
    ),
    "transformer": (transformer, (2, 5, 16)),
    "attention": (lambda: Sequence(nn.MultiheadAttention(16, 4, 0.1, batch_first=True)), (2, 5, 16)),
    "recurrent": (lambda: Sequence(nn.LSTM(16, 16, 2, dropout=0.2, batch_first=True)), (2, 5, 16)),
}
every_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)


@every_model
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_numbers_are_identical_to_the_bit(
    make: Callable[[], nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    """Outputs, random numbers, gradients and state are compared with and without the guard."""

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model, x = make().train(training), torch.randn(shape)
        with torch.inference_mode():
            inferred = model(x)
        trained = model(x)
        trained.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [inferred, trained, *gradients, *model.state_dict().values(), torch.get_rng_state()]

    plain = run()
    with watching():
        guarded = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))


@every_model
def test_the_model_and_global_state_are_unchanged(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    def facts() -> list[object]:
        return [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            [sorted(vars(module)) for module in model.modules()],
            [module.training for module in model.modules()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            {name: len(value) for name, value in hooks.items() if isinstance(value, dict)},
            [(p.requires_grad, p.grad, p._version, p.data_ptr()) for p in model.parameters()],
        ]

    hooks = {name: value for name, value in vars(torch.nn.modules.module).items() if name.startswith("_global_")}
    model = make().eval()
    before = facts()
    with watching(model), torch.no_grad():
        model(torch.randn(shape))
    assert facts() == before


@every_model
def test_inputs_and_outputs_are_freed_immediately(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = make().eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            for _ in range(2):
                x = torch.randn(shape)
                out = model(x)
                input_ref, output_ref = weakref.ref(x), weakref.ref(out)
                del x, out
                assert input_ref() is None
                assert output_ref() is None
    finally:
        gc.enable()


def test_the_input_of_a_forward_that_raised_is_freed() -> None:
    model = nn.Linear(4, 4).eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            x = batch(2, 3)
            input_ref = weakref.ref(x)
            with suppress(RuntimeError):
                model(x)
            del x
            assert input_ref() is None
    finally:
        gc.enable()


class Pipeline(nn.Module):
    """Returns its local variables, which a debugger would show."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        variables = locals()
        return self.net(x), variables


@torch.no_grad()
def test_local_variables_are_not_cleared() -> None:
    model = Pipeline().eval()
    with guard():
        _, variables = model.forward(batch())
    assert {"self", "x"} <= set(variables)


def test_the_fast_path_of_the_transformer_is_used() -> None:
    """Torch does not use it if torch functions are overridden or a layer has hooks."""
    model = transformer().eval()
    x = torch.randn(2, 5, 16)
    with guard(), torch.inference_mode(), torch.profiler.profile() as profile:
        model(x)
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
