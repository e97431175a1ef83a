"""Changes of tensors on a device are reported: every kind of change, dtype and layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_evalmode.observe.state import devices
from tests.nets import Net, rules, watching

WIDE = 320  # a matrix of 400 kB: four segments of sums, the last of them short


class Wide(nn.Module):
    """A model with a matrix too large to be copied to the host, a small one, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDE, WIDE)
        self.bn = nn.BatchNorm1d(WIDE)
        self.head = nn.Linear(WIDE, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.bn(self.fc(x)))
        return out


def wide(device: torch.device) -> Wide:
    torch.manual_seed(0)
    return Wide().to(device).eval()


def run(net: nn.Module) -> None:
    example = next(net.parameters())
    with torch.no_grad():
        net(torch.ones(3, WIDE, dtype=example.dtype, device=example.device))


def flip(tensor: Tensor, element: int = -1) -> None:
    """Flip the lowest bit of an element."""
    bytes_ = tensor.detach().view(-1).view(torch.uint8).view(tensor.numel(), -1)
    bytes_[element, 0] ^= 1


def flip_back(net: Wide) -> None:
    flip(net.fc.weight)
    flip(net.fc.weight)


def swap(tensor: Tensor, one: int, other: int) -> None:
    flat = tensor.detach().view(-1)
    flat[[one, other]] = flat[[other, one]]


def step(optimizer: type[torch.optim.Optimizer], **options: Any) -> Callable[[Wide], None]:
    def act(net: Wide) -> None:
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer(net.parameters(), lr=1e-3, **options).step()  # type: ignore[call-arg]
        net.zero_grad()

    return act


def forget_eval(net: Wide) -> None:
    net.train()
    run(net)
    net.eval()


def run_in_training(net: Wide) -> None:
    net.bn.train()
    run(net)
    net.bn.eval()


def data(net: Wide) -> None:
    net.fc.weight.data[3, 5] += 1


def other_data(net: Wide) -> None:
    net.fc.weight.data = net.fc.weight.data.clone().neg_()


def other_storage(net: Wide) -> None:
    net.fc.weight.untyped_storage().copy_(torch.zeros_like(net.fc.weight).untyped_storage())


def from_host(net: Wide) -> None:
    net.fc.weight.detach().copy_(torch.ones(WIDE, WIDE), non_blocking=True)


def load(net: Wide) -> None:
    net.load_state_dict({name: value.cpu() + 1 for name, value in net.state_dict().items()})


STATE = {"state-mutated"}
FAULTS: dict[str, tuple[Callable[[Wide], object], set[str]]] = {
    "forgotten eval": (forget_eval, {"train-mode", *STATE}),
    "running statistics": (run_in_training, {"train-mode", *STATE}),
    "one bit of the last element": (lambda net: flip(net.fc.weight), STATE),
    "one bit of the first": (lambda net: flip(net.fc.weight, 0), STATE),
    "one bit of a sign in the middle": (lambda net: net.fc.weight.data[WIDE // 2, 7].neg_(), STATE),
    "one bit of a small tensor": (lambda net: flip(net.head.bias), STATE),
    "two neighbors swapped": (lambda net: swap(net.fc.weight, 8, 9), STATE),
    "two elements of two segments swapped": (lambda net: swap(net.fc.weight, 8, 8 + devices.SEGMENT_BYTES // 4), STATE),
    "two elements of a small tensor swapped": (lambda net: swap(net.head.weight, 3, 300), STATE),
    "written through data": (data, STATE),
    "other data": (other_data, STATE),
    "its storage": (other_storage, STATE),
    "copied from the host": (from_host, STATE),
    "loaded": (load, STATE),
    "a buffer": (lambda net: net.bn.get_buffer("running_mean").add_(1), STATE),
    "a fused optimizer": (step(torch.optim.AdamW, fused=True), STATE),
    "a foreach optimizer": (step(torch.optim.AdamW, foreach=True), STATE),
    "moved to another dtype": (lambda net: net.double(), STATE),
}

CLEAN: dict[str, Callable[[Wide], object]] = {
    "nothing": lambda net: None,
    "a forward": run,
    "state that is read": lambda net: {name: value.cpu() for name, value in net.state_dict().items()},
    "a copy of the same": lambda net: setattr(net.fc.weight, "data", net.fc.weight.data.clone()),
    "another order of the same": lambda net: setattr(net.fc.weight, "data", net.fc.weight.data.t().contiguous().t()),
    "a bit flipped twice": lambda net: flip_back(net),
    "autocast": lambda net: autocast(net),
}


def autocast(net: Wide) -> None:
    with torch.autocast(net.fc.weight.device.type, torch.bfloat16):
        run(net)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_is_reported(device: torch.device, fault: str) -> None:
    net = wide(device)
    act, expected = FAULTS[fault]
    with watching(net) as g:
        act(net)
    assert rules(g) == expected
    assert not g.window.failures


@pytest.mark.parametrize("act", CLEAN)
def test_these_acts_are_clean(device: torch.device, act: str) -> None:
    net = wide(device)
    with watching(net, strict=True) as g:
        CLEAN[act](net)
    assert rules(g) == set()
    assert not g.window.failures


def test_a_step_of_a_capturable_optimizer_is_reported(cuda: torch.device) -> None:
    net = wide(cuda)
    with watching(net) as g:
        step(torch.optim.AdamW, capturable=True)(net)
    assert rules(g) == STATE


def test_a_message_says_how_far_a_tensor_moved(device: torch.device) -> None:
    net = wide(device)
    with watching(net) as g:
        net.bn.get_buffer("running_mean")[3] += 0.5
    (violation,) = g.violations
    assert "0.5" in str(violation), violation


# --- dtypes and layouts


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.complex64,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("length", [9, WIDE * WIDE + 3], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_change_in_any_dtype_is_reported(device: torch.device, dtype: torch.dtype, length: int) -> None:
    holder = nn.Module()
    holder.tensor = nn.Buffer((torch.arange(length) % 2).to(dtype).to(device))
    with watching(holder) as g:
        pass
    assert not g.violations
    with watching(holder) as g:
        flip(holder.get_buffer("tensor"))
    assert rules(g) == STATE


def of_four(t: Tensor) -> Tensor:
    return t.reshape(1, 4, WIDE // 4, WIDE).contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], object]]] = {
    "channels last": (of_four, lambda t: t[0, 1, 2, 3].neg_()),
    "transposed": (lambda t: t.clone().t(), lambda t: t[3, 4].neg_()),
    "with gaps": (lambda t: t.clone()[:, ::2], lambda t: t[3, 4].neg_()),
    "unaligned": (lambda t: t.half().view(-1)[1:].clone().view(-1)[3:], lambda t: t[5].neg_()),
    "expanded": (lambda t: t[:1].clone().expand(3, -1), lambda t: t[0, 4].neg_()),
    "conjugate": (lambda t: torch.complex(t, t + 1).conj(), lambda t: t[3, 4].neg_()),
    "sparse": (lambda t: t.to_sparse(), lambda t: t._values()[7].neg_()),
    "sparse rows": (lambda t: t.to_sparse_csr(), lambda t: t.values()[7].neg_()),
    "quantized": (
        lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
        lambda t: t.copy_(torch.quantize_per_tensor(t.dequantize() + 1, 1.0, 0, torch.qint8)),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_change_in_any_layout_is_reported(device: torch.device, layout: str) -> None:
    make, change = LAYOUTS[layout]
    holder = nn.Module()
    holder.tensor = nn.Buffer(make((torch.arange(WIDE * WIDE) % 97 + 1.0).reshape(WIDE, WIDE).to(device)))
    with watching(holder) as g:
        pass
    assert not g.violations
    assert not g.window.failures
    with watching(holder) as g:
        change(holder.get_buffer("tensor"))
    assert rules(g) == STATE
    assert not g.window.failures


# --- several devices


def test_changes_on_two_devices_are_reported(device: torch.device) -> None:
    net = nn.ModuleDict({"here": nn.Linear(WIDE, WIDE), "there": nn.Linear(WIDE, WIDE).to(device)}).eval()
    with watching(net) as g:
        pass
    assert not g.violations
    with watching(net) as g:
        for part in net.values():
            flip(part.get_parameter("weight"))
    (violation,) = g.violations
    assert len(violation.subjects) == 2


def test_moving_a_model_is_a_change(accelerator: torch.device) -> None:
    net = wide(accelerator)
    with watching(net) as g:
        net.cpu()
    assert rules(g) == STATE
    with watching(net) as g:
        net.to(accelerator)
        run(net)
        net.cpu()
    assert rules(g) == set()
    with watching(net) as g:
        net.to(accelerator)
        flip(net.fc.weight)
        net.cpu()
    assert rules(g) == STATE


def test_a_change_in_a_dead_model_is_reported(device: torch.device) -> None:
    with watching() as g:
        net = Net().to(device).eval()
        with torch.no_grad():
            net(torch.ones(2, 4, device=device))
            net.body.weight.add_(1)
        del net
    assert rules(g) == STATE


# --- out of memory


def test_reads_on_host_and_device_are_comparable(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without free memory is read on the host; both reads give the same result."""
    net = wide(device)
    usual = devices._is_exact

    def full(device: torch.device) -> bool:
        raise torch.OutOfMemoryError("out of memory")

    for first, second in ((usual, full), (full, usual)):
        monkeypatch.setattr(devices, "_is_exact", first)
        with watching(net) as g:
            monkeypatch.setattr(devices, "_is_exact", second)
        assert not g.violations
        assert not g.window.failures
        monkeypatch.setattr(devices, "_is_exact", first)
        with watching(net) as g:
            monkeypatch.setattr(devices, "_is_exact", second)
            flip(net.fc.weight)
        assert rules(g) == STATE


def test_a_full_device_can_be_read(cuda: torch.device) -> None:
    net, little = nn.ParameterList([torch.rand(25_000_000, device=cuda)]), torch.ones(1, device=cuda)
    torch.cuda.empty_cache()  # only a little cached memory is left
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 26, device=cuda)
        with watching(net) as g:
            flip(net[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert rules(g) == STATE
    assert not g.window.failures
    assert little.item() == 1
