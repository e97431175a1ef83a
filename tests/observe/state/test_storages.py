"""Models with weights in every kind of storage: they run clean, and a change is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.two_tensor import TwoTensor

from pytest_evalmode import guard
from tests.nets import batch, only, watching

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse",
    "ignore:torch.quantize",
    "ignore:torch.ao.quantization is deprecated",
    "ignore:.*reduce_range",
    "ignore:The PyTorch API of nested tensors",
    "ignore:::torchao",
)


@dataclass(frozen=True)
class Kind:
    """A kind of storage for weights."""

    make: Callable[[Path], Any]
    """Makes a model, given an empty folder."""
    spoil: Callable[[Any], object]
    """Changes one of its tensors in the usual way."""
    changed: str
    """The name of that tensor."""
    given: Callable[[], Tensor] = batch


class Holder(nn.Module):
    """A model with a layer, and a tensor that its forward uses."""

    def __init__(self, table: Tensor, use: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("table", table)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        self.use(self.get_buffer("table"), x)
        out: Tensor = self.layer(x)
        return out


def net(*_: Path) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def double(tensor: Tensor) -> None:
    """Double a tensor in place; also runs in another process."""
    with torch.no_grad():
        tensor.mul_(2)


# --- computed


class Symmetric(nn.Module):
    """A parametrization written by the user."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.triu()


def symmetric(*_: Path) -> nn.Module:
    model = net()
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return model


def normed(norm: Callable[[nn.Module], nn.Module]) -> Callable[[Path], nn.Module]:
    return lambda _: nn.Sequential(norm(nn.Linear(4, 4)))


def spectral(_: Path) -> Any:
    """Return a model whose power iteration has not converged, so that each step changes its buffers."""
    model: Any = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)))
    model[0].parametrizations.weight[0]._u.fill_(0.5)
    return model


def read_in_training_mode(model: Any) -> None:
    assert model[0].weight.shape == (4, 4)  # eval mode changes nothing
    model.train()
    assert model[0].weight.shape == (4, 4)
    model.eval()


COMPUTED = {
    "weight norm": Kind(
        normed(parametrizations.weight_norm),
        lambda m: double(m[0].parametrizations.weight.original0),
        "0.parametrizations.weight.original0",
    ),
    "spectral norm": Kind(spectral, read_in_training_mode, "0.parametrizations.weight.0._u"),
    "orthogonal": Kind(
        normed(parametrizations.orthogonal),
        lambda m: setattr(m[0], "weight", -torch.eye(4)),
        "0.parametrizations.weight.0.base",
    ),
    "a parametrization": Kind(
        symmetric, lambda m: setattr(m[0], "weight", torch.eye(4)), "0.parametrizations.weight.original"
    ),
    "a parametrization removed": Kind(
        symmetric, lambda m: parametrize.remove_parametrizations(m[0], "weight"), "0.parametrizations.weight.original"
    ),
}

# --- quantized

layers: Any = torch.ao.nn.quantized


def quantize_dynamic(model: nn.Module) -> nn.Module:
    quantized: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval())  # type: ignore[no-untyped-call]
    return quantized


def shift_weight(layer: Any) -> None:
    weight, bias = layer._weight_bias()
    layer.set_weight_bias(per_tensor(weight.dequantize() + weight.q_scale(), weight.q_scale()), bias)


def shift_bias(layer: Any) -> None:
    weight, bias = layer._weight_bias()
    layer.set_weight_bias(weight, bias + 1)


def per_tensor(tensor: Tensor, scale: float = 1.0) -> Tensor:
    return torch.quantize_per_tensor(tensor, scale, 0, torch.qint8)


def per_channel(tensor: Tensor) -> Tensor:
    return torch.quantize_per_channel(tensor, torch.ones(4), torch.zeros(4), 0, torch.qint8)


def matmul_dequantized(table: Tensor, x: Tensor) -> Tensor:
    return x @ table.dequantize()


def wrapped(_: Path) -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)))  # type: ignore[no-untyped-call]
    return model


def by_torchao(config: str, **arguments: Any) -> Callable[[Path], nn.Module]:
    def make(_: Path) -> nn.Module:
        torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
        model = net()
        torchao.quantize_(model, getattr(torchao, config)(**arguments))
        return model

    return make


PACKED = "_packed_params._packed_params"
QUANTIZED = {
    "packed weight": Kind(lambda _: quantize_dynamic(net()), lambda m: shift_weight(m[0]), f"0.{PACKED}.0"),
    "packed bias": Kind(lambda _: quantize_dynamic(net()), lambda m: shift_bias(m[2]), f"2.{PACKED}.1"),
    "packed and loaded": Kind(
        lambda _: quantize_dynamic(net()),
        lambda m: m.load_state_dict(quantize_dynamic(net()).state_dict()),
        f"0.{PACKED}.0",
    ),
    "packed LSTM": Kind(
        lambda _: nn.Sequential(layers.dynamic.LSTM(4, 4)),
        lambda m: m.load_state_dict(quantize_dynamic(nn.Sequential(nn.LSTM(4, 4))).state_dict()),
        "0._all_weight_values.0.param.0",
        lambda: batch(2, 3, 4),
    ),
    "packed GRU cell": Kind(
        lambda _: nn.Sequential(layers.dynamic.GRUCell(4, 4)),
        lambda m: m.load_state_dict(nn.Sequential(layers.dynamic.GRUCell(4, 4)).state_dict()),
        "0._packed_weight_hh.0",
    ),
    "packed convolution": Kind(
        lambda _: layers.Conv2d(1, 1, 1),
        lambda m: shift_bias(m),
        "_packed_params.2",
        lambda: torch.quantize_per_tensor(torch.ones(1, 1, 4, 4), 1.0, 0, torch.quint8),
    ),
    "per tensor": Kind(
        lambda _: Holder(per_tensor(torch.ones(4, 4)), matmul_dequantized),
        lambda m: m.table.copy_(per_tensor(torch.eye(4))),
        "table",
    ),
    "per channel": Kind(
        lambda _: Holder(per_channel(torch.ones(4, 4)), matmul_dequantized),
        lambda m: m.table.copy_(per_channel(torch.eye(4))),
        "table",
    ),
    "a wrapper subclass": Kind(wrapped, lambda m: double(m[0].weight.b), "0.weight"),
    "torchao, weights of int8": Kind(
        by_torchao("Int8WeightOnlyConfig"), lambda m: m[0].weight.qdata[0, 0].add_(1), "0.weight"
    ),
    "torchao, scales": Kind(by_torchao("Int8WeightOnlyConfig"), lambda m: double(m[0].weight.scale), "0.weight"),
    "torchao, activations of int8": Kind(
        by_torchao("Int8DynamicActivationInt8WeightConfig"), lambda m: double(m[2].weight.scale), "2.weight"
    ),
    "torchao, weights of float8": Kind(
        by_torchao("Float8WeightOnlyConfig"), lambda m: m[2].weight.qdata.view(torch.uint8)[0, 0].add_(1), "2.weight"
    ),
}

# --- layouts


def nested(layout: torch.layout) -> Callable[[Path], nn.Module]:
    def make(_: Path) -> nn.Module:
        rows = [torch.ones(2, 4), torch.ones(3, 4)]
        return Holder(torch.nested.nested_tensor(rows, layout=layout), lambda table, _: torch.softmax(table, -1))

    return make


def jagged(_: Path) -> nn.Module:
    """Return a model with a nested tensor, which caches the length of its longest row on first use."""
    table = torch.nested.nested_tensor_from_jagged(torch.ones(5, 4), torch.tensor([0, 2, 5]))
    return Holder(table, lambda table, _: torch.softmax(table, 1))


def sparse(make: Callable[[Tensor], Tensor]) -> Callable[[Path], nn.Module]:
    return lambda _: Holder(make(torch.eye(4)), lambda table, x: table @ x.T)


LAYOUTS = {
    "coo": Kind(sparse(lambda t: t.to_sparse()), lambda m: double(m.table), "table"),
    "csr": Kind(sparse(lambda t: t.to_sparse_csr()), lambda m: double(m.table.values()), "table"),
    "csc": Kind(sparse(lambda t: t.to_sparse_csc()), lambda m: double(m.table.values()), "table"),
    "bsr": Kind(sparse(lambda t: t.to_sparse_bsr((2, 2))), lambda m: double(m.table.values()), "table"),
    "bsc": Kind(
        lambda _: Holder(torch.eye(4).to_sparse_bsc((2, 2)), lambda table, _: table.to_dense()),
        lambda m: double(m.table.values()),
        "table",
    ),
    "indices": Kind(
        sparse(lambda t: t.to_sparse()), lambda m: m.table._indices().copy_(torch.tensor([[0], [1]])), "table"
    ),
    "nested, jagged": Kind(nested(torch.jagged), lambda m: m.table.values()[0, 0].add_(1), "table"),
    "nested, jagged, by its offsets": Kind(jagged, lambda m: m.table.offsets()[1].add_(1), "table"),
    "nested, strided": Kind(nested(torch.strided), lambda m: double(m.table), "table"),
}

# --- mapped and shared memory


def mapped(folder: Path) -> nn.Module:
    model, path = net(), folder / "weights.pt"
    torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(path, mmap=True), assign=True)
    return model


def safetensors(folder: Path) -> nn.Module:
    model, path = net(), folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path), assign=True)
    return model


def from_file(folder: Path) -> nn.Module:
    """Return a model with a buffer that is mapped from a file."""
    path = folder / "table.bin"
    path.write_bytes(bytes(64))
    model = Holder(torch.from_file(str(path), shared=True, size=16), lambda table, x: x + table[:4])
    vars(model)["path"] = path
    return model


def write_file(model: Any) -> None:
    with model.path.open("r+b") as file:
        file.write(b"\1")


def shared(_: Path) -> nn.Module:
    return net().share_memory()


def double_elsewhere(tensor: Tensor) -> None:
    process = torch.multiprocessing.get_context("fork").Process(target=double, args=(tensor,))
    process.start()
    process.join()
    assert process.exitcode == 0


MEMORY = {
    "torch.load(mmap=True)": Kind(mapped, lambda m: double(m[0].weight), "0.weight"),
    "safetensors": Kind(safetensors, lambda m: double(m[0].weight), "0.weight"),
    "a file": Kind(from_file, write_file, "table"),
    "shared memory": Kind(shared, lambda m: double(m[2].bias), "2.bias"),
    "shared memory, by another process": Kind(shared, lambda m: double_elsewhere(m[0].weight.data), "0.weight"),
}

# --- no memory

FAKE = FakeTensorMode()


def fake(_: Path) -> nn.Module:
    with FAKE:
        return net()


def mixed(_: Path) -> nn.Module:
    """Return a model with a head on the meta device, which never runs."""
    model = net()
    vars(model)["forward"] = lambda x: model[0](x)
    model[2].to("meta")
    return model


NO_MEMORY = {
    "meta": Kind(
        lambda _: net().to("meta"), lambda m: m[0].to_empty(device="cpu"), "0.weight", lambda: batch().to("meta")
    ),
    "fake": Kind(
        fake,
        lambda m: setattr(m[2], "bias", nn.Parameter(FAKE.from_tensor(torch.ones(1)))),
        "2.bias",
        lambda: FAKE.from_tensor(batch()),
    ),
    "mixed, where there is memory": Kind(mixed, lambda m: double(m[0].weight), "0.weight"),
    "mixed, where there is none": Kind(mixed, lambda m: m[2].to_empty(device="cpu"), "2.weight"),
}

KINDS = COMPUTED | QUANTIZED | LAYOUTS | MEMORY | NO_MEMORY
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


@both
@every_kind
@torch.no_grad()
def test_a_model_with_any_storage_runs_clean(kind: Kind, strict: bool, tmp_path: Path) -> None:
    model = kind.make(tmp_path).eval()
    with guard(model, strict=strict):
        model(kind.given())
        model(kind.given())


@both
@every_kind
@torch.no_grad()
def test_a_change_in_any_storage_is_reported(kind: Kind, strict: bool, tmp_path: Path) -> None:
    model = kind.make(tmp_path).eval()
    with watching(model, strict=strict) as g:
        model(kind.given())
        kind.spoil(model)
    names = [subject.partition(".")[2] for subject in only(g, "state-mutated").subjects]
    assert kind.changed in names


# --- packed weights


@torch.no_grad()
def test_loading_equal_packed_weights_is_clean() -> None:
    model = quantize_dynamic(net())
    with guard(model, strict=True):
        model(batch())
        model.load_state_dict(model.state_dict())


@both
@torch.no_grad()
def test_a_model_with_packed_weights_may_die(strict: bool) -> None:
    with guard(strict=strict):
        KINDS["packed convolution"].make(Path()).eval()(KINDS["packed convolution"].given())


def test_a_model_with_packed_weights_counts_as_a_model() -> None:
    """It has no parameters, but still counts; torch leaves it in training mode, which does not matter."""
    with guard(strict=True) as g, torch.no_grad():
        model = quantize_dynamic(net())
        model(batch())
    assert [(model.name, model.tensors) for model in g.window.models] == [("Sequential", 4)]
