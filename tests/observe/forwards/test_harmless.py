"""What guarding does to what it guards: nothing."""

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
    """Takes the first of what a recurrent or an attention layer returns."""

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
def test_the_numbers_are_the_same_to_the_bit(
    make: Callable[[], nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    """Outputs, random numbers, gradients, state: with the guard and without."""

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
def test_the_model_is_left_as_it_was(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
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
def test_inputs_and_outputs_die_when_they_are_dropped(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = make().eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            for _ in range(2):
                x = torch.randn(shape)
                out = model(x)
                given, taken = weakref.ref(x), weakref.ref(out)
                del x, out
                assert given() is None
                assert taken() is None
    finally:
        gc.enable()


def test_an_input_that_made_the_forward_raise_dies_too() -> None:
    model = nn.Linear(4, 4).eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            x = batch(2, 3)
            given = weakref.ref(x)
            with suppress(RuntimeError):
                model(x)
            del x
            assert given() is None
    finally:
        gc.enable()


class Pipeline(nn.Module):
    """Keeps its local variables, as a debugger does that stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        kept = locals()
        return self.net(x), kept


@torch.no_grad()
def test_local_variables_are_left_alone() -> None:
    model = Pipeline().eval()
    with guard():
        _, kept = model.forward(batch())
    assert {"self", "x"} <= set(kept)


def test_the_fast_path_of_the_transformer_is_taken() -> None:
    """Torch leaves it where anything overrides torch functions, or hooks a layer."""
    model = transformer().eval()
    x = torch.randn(2, 5, 16)
    with guard(), torch.inference_mode(), torch.profiler.profile() as profile:
        model(x)
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
