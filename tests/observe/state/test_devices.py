"""The reads for accelerators, run on the CPU: they notice every change of bits, and transfer little."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import devices, digests, fingerprint, snapshot
from pytest_evalmode.observe.state.fingerprint import MAX_VALUE_BYTES, undisturbed
from pytest_evalmode.trace import TensorChange
from tests.observe.state.test_fingerprint import DTYPES, STRIDED, Make, equal, memory, numbered, read, square
from tests.repetitions import mark_repetitions

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")

CPU = torch.device("cpu")
SEGMENT = 64  # bytes of a segment: eight words


@contextmanager
def simulated_device(small: int = 15) -> Iterator[None]:
    """Treat all tensors as tensors on an accelerator, with segments so small that a test has several."""
    devices._is_exact(CPU)  # checked once, with large segments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "accelerator_in_use", lambda: torch.cpu)
        patch.setattr(devices, "is_on_device", lambda tensor: True)
        patch.setattr(devices, "SMALL_BYTES", small)
        patch.setattr(fingerprint, "MAX_VALUE_BYTES", small)
        patch.setattr(devices, "SEGMENT_BYTES", SEGMENT)
        patch.setattr(devices, "CHUNK_BYTES", 2 * SEGMENT)
        for module in (digests, fingerprint):
            patch.setattr(module, "host_address", lambda tensor, dtype: 0)
        yield


@pytest.fixture
def device() -> Iterator[None]:
    with simulated_device():
        yield


def differ(before: Tensor, now: Tensor) -> bool:
    """Return whether two tensors count as different, on the host and on a device."""
    on_host = not equal(read(before, store_values=False), now)
    with simulated_device():
        assert (not equal(read(before, store_values=False), now)) == on_host
        assert (not equal(before, now)) == on_host
    return on_host


# --- what counts as different


LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 128, 200)


@pytest.mark.parametrize("length", mark_repetitions(LENGTHS, (0, 1, 15, 17, 200)))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_match_and_one_flipped_bit_does_not(dtype: torch.dtype, length: int) -> None:
    tensor = numbered(dtype, length)
    assert not differ(tensor, numbered(dtype, length))
    for position in {0, length // 2, length - 1} if length else ():
        changed = numbered(dtype, length)
        memory(changed).view(length, -1)[position, -1] ^= 1
        assert differ(tensor, changed)


@given(st.binary(min_size=1, max_size=5 * SEGMENT), st.data())
def test_one_flipped_bit_anywhere_is_noticed(content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    changed = tensor.clone()
    changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert differ(tensor, changed)


@given(st.data())
def test_two_flipped_bits_are_noticed(data: st.DataObject) -> None:
    """Two flipped sign bits, for example: a sum with odd weights would not notice them."""
    words = data.draw(
        st.lists(st.sampled_from([0, 1, -1, 1 << 62, 0x3FF << 52]), min_size=2, max_size=5 * SEGMENT // 8)
    )
    tensor = torch.tensor(words)
    changed = tensor.clone()
    bit = data.draw(st.integers(0, 63))
    for place in data.draw(st.sets(st.integers(0, len(words) - 1), min_size=2, max_size=2)):
        changed[place] ^= 1 << bit if bit < 63 else -(1 << 63)
    assert differ(tensor, changed)


@given(st.permutations(range(20)), st.sampled_from([torch.int64, torch.float32, torch.bfloat16, torch.uint8]))
def test_another_order_is_noticed(order: list[int], dtype: torch.dtype) -> None:
    tensor = torch.arange(20).repeat_interleave(3).to(dtype)
    changed = tensor.view(20, 3)[order].view(-1)
    assert differ(tensor, changed) == (order != sorted(order))


@pytest.mark.parametrize("apart", mark_repetitions([1 << i for i in range(12)], (1, 64, 2048)))
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_two_swapped_elements_far_apart_are_noticed(dtype: torch.dtype, apart: int) -> None:
    tensor = (torch.arange(1 << 12) * 7 % 251).to(dtype)
    for first in (0, 5):
        changed = tensor.clone()
        changed[first], changed[first + apart] = tensor[first + apart], tensor[first]
        assert differ(tensor, changed)


def test_two_different_swaps_are_different() -> None:
    """The tensor holds position ids, as language models have them."""
    positions = torch.arange(64)
    one, other = positions.clone(), positions.clone()
    one[0], one[1] = 1, 0
    other[2], other[3] = 3, 2
    assert differ(one, other)


WHOLE: dict[str, Make] = {
    "negated": lambda t: -t,
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "rolled": lambda t: t.roll(1),
    "rolled by a segment": lambda t: t.view(torch.uint8).roll(SEGMENT).view(t.dtype),
    "reversed": lambda t: t.flip(0),
    "two segments swapped": lambda t: t.view(torch.uint8).view(-1, SEGMENT)[[2, 1, 0, 3]].view(-1).view(t.dtype),
    "all words but one": lambda t: torch.cat([t[:1], t[1:] + 1]),
}


@pytest.mark.parametrize("change", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32, torch.float16], ids=str)
def test_a_change_of_all_words_is_noticed(dtype: torch.dtype, change: Make) -> None:
    length = 4 * SEGMENT // dtype.itemsize
    for tensor in (torch.arange(2.0, length + 2).to(dtype), torch.full((length,), 2, dtype=dtype)):
        changed = change(tensor)
        assert differ(tensor, changed) == (not torch.equal(tensor, changed))


def test_different_constants_are_different() -> None:
    fills = [torch.full((40,), value) for value in (0.0, 1.0, -1.0, 2.0, float("nan"), float("inf"))]
    for one in fills:
        for other in fills:
            assert differ(one, other) == (one is not other)


@pytest.mark.parametrize("make", STRIDED.values(), ids=STRIDED)
def test_every_layout_is_compared_by_value(make: Make) -> None:
    changed = square()
    changed[1, 2] += 1
    changed[1, 0] -= 1
    assert not differ(make(square()), make(square()))
    assert differ(make(square()), make(changed))


@pytest.mark.parametrize("arrange", [lambda t: t.t().contiguous().t(), lambda t: t.repeat_interleave(2, 1)[:, ::2]])
def test_the_layout_in_memory_does_not_count(arrange: Make) -> None:
    tensor = torch.arange(400.0).reshape(20, 20)
    assert not differ(tensor, arrange(tensor))
    assert differ(tensor, tensor.t())
    assert differ(tensor, arrange(tensor + 1))


@pytest.mark.parametrize("offset", range(1, 9))
def test_unaligned_data_is_compared_by_value(offset: int) -> None:
    data = torch.arange(250, dtype=torch.uint8)
    assert not differ(data[offset : offset + 200], data[offset : offset + 200].clone())
    assert differ(data[offset : offset + 200], data[offset - 1 : offset + 199])


def test_stored_values_are_the_bytes_of_the_tensor(device: None) -> None:
    assert read(torch.tensor([1, 2, 3], dtype=torch.uint8)).bits == b"\x01\x02\x03"


# --- memory and transfers


class Peak(TorchDispatchMode):
    """Measures the peak memory of new tensors, without that of the given ones."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._made.append(weakref.ref(made))
        sizes = {}
        for tensor in (ref() for ref in self._made):
            if tensor is not None:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.bytes = max(self.bytes, sum(size for place, size in sizes.items() if place not in self._given))
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_extra_memory_is_bounded(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SEGMENT_BYTES", 1 << 10)
    monkeypatch.setattr(devices, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(devices, "SMALL_BYTES", 1 << 6)
    devices._is_exact(CPU)
    devices._weights(devices.SEGMENT_BYTES // 4)
    tensors = [torch.ones((1 << 16) + 1, dtype=dtype), *(torch.ones(64, dtype=torch.uint8) for _ in range(200))]
    with torch.no_grad(), Peak(tensors) as peak:
        devices.read(enumerate(tensors))
    assert 4 * devices.CHUNK_BYTES < peak.bytes < 7 * devices.CHUNK_BYTES


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the size of each transfer to the host."""
    devices._is_exact(CPU)
    sizes: list[int] = []
    original = Tensor.cpu

    def cpu(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return original(tensor)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    return sizes


def test_a_model_needs_one_transfer(transfers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: torch.cpu)
    monkeypatch.setattr(devices, "is_on_device", lambda tensor: True)
    for module in (digests, fingerprint):
        monkeypatch.setattr(module, "host_address", lambda tensor, dtype: 0)
    net = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 7).double())
    snapshot.take_snapshot(net)
    weight, *rest = (tensor.nbytes for tensor in net.state_dict().values())
    assert weight > devices.SMALL_BYTES >= max(rest)
    assert transfers == [16 * weight // devices.SEGMENT_BYTES + sum(rest)]


def test_many_small_tensors_are_transferred_in_chunks(device: None, transfers: list[int]) -> None:
    tensors = [torch.full((i % 16,), i, dtype=torch.uint8) for i in range(100)]
    assert devices.read(enumerate(tensors)) == {i: bytes([i] * (i % 16)) for i in range(100)}
    assert len(transfers) > 1
    assert max(transfers) <= 2 * SEGMENT + 15


# --- under other settings of torch


def inference() -> AbstractContextManager[object]:
    return torch.inference_mode()


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default": nullcontext,
    "inference mode": inference,
    "another default device": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "autograd": torch.enable_grad,
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("made_in", [nullcontext, inference])
def test_the_result_does_not_depend_on_torch_settings(
    setting: Callable[[], AbstractContextManager[object]],
    made_in: Callable[[], AbstractContextManager[object]],
    device: None,
) -> None:
    with made_in():
        tensor = nn.Parameter(torch.arange(201.0))
    draws = torch.get_rng_state()
    expected = read(tensor)
    with setting():
        assert read(tensor) == expected
    assert torch.equal(torch.get_rng_state(), draws)


def test_an_inexact_device_is_read_on_the_host(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.arange(201.0), torch.ones(3, dtype=torch.uint8)]
    expected = devices.read(enumerate(tensors))
    monkeypatch.setattr(devices, "_is_exact", lambda device: False)
    assert devices.read(enumerate(tensors)) == expected


def test_a_device_is_checked_against_the_host() -> None:
    assert devices._is_exact(CPU)
    assert not devices._is_exact(torch.device("meta"))


def test_a_device_without_memory_is_read_on_the_host(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read on the host, with the same result as before."""
    tensors = [torch.arange(201.0), torch.ones(3, dtype=torch.uint8)]
    expected = devices.read(enumerate(tensors))

    def full(device: torch.device) -> bool:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(devices, "_is_exact", full)
    assert devices.read(enumerate(tensors)) == expected


def test_a_check_that_ran_out_of_memory_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device had no memory for the sample."""
    checked = []

    def full(device: torch.device, parts: object) -> dict[int, bytes]:
        checked.append(device)
        raise torch.OutOfMemoryError("out of memory")

    devices._is_exact.cache_clear()
    monkeypatch.setattr(devices, "_read_on", full)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            devices._is_exact(CPU)
    assert checked == [CPU, CPU]


def test_a_read_during_a_graph_capture_raises(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.arange(201.0)
    accelerator = SimpleNamespace(is_current_stream_capturing=lambda: True)
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: accelerator)
    with pytest.raises(RuntimeError, match="captured"):
        read(tensor)


def test_sync_debug_mode_is_off_during_a_read(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = [2]
    accelerator = SimpleNamespace(get_sync_debug_mode=lambda: modes[-1], set_sync_debug_mode=modes.append)
    monkeypatch.setattr(devices, "accelerator_in_use", lambda: accelerator)
    read(torch.arange(201.0))
    assert modes == [2, 0, 2]


def test_no_accelerator_is_in_use_here() -> None:
    assert devices.accelerator_in_use() is None
    assert not devices.is_on_device(torch.ones(1))
    assert devices.is_on_device(torch.ones(1, device="meta"))


# --- in a model


def changes(net: nn.Module, act: Callable[[], object]) -> list[TensorChange]:
    before = snapshot.take_snapshot(net)
    with torch.no_grad():
        act()
    return snapshot.find_changes("net", before, snapshot.take_snapshot(net, before), modules.walk(net), None)


def test_changes_of_a_model_on_a_device() -> None:
    first, norm, last = nn.Linear(40, 80), nn.BatchNorm1d(80), nn.Linear(40, 80)
    last.weight = first.weight  # tied
    mean, weight = norm.get_buffer("running_mean"), first.weight
    net = nn.ModuleList([first, norm, last])
    assert weight.nbytes > MAX_VALUE_BYTES
    with simulated_device(MAX_VALUE_BYTES):
        assert not changes(net, lambda: None)
        first_change, *others = changes(
            net, lambda: (mean[3].add_(0.5), weight.view(torch.int32)[3, 5].bitwise_xor_(1))
        )
    assert (first_change.path, first_change.elements, first_change.numel, first_change.max_abs) == (
        "1.running_mean",
        1,
        80,
        0.5,
    )
    assert [change.path for change in others] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean"])
def test_an_unchanged_model_is_recognized_by_its_plan(name: str) -> None:
    net = nn.Sequential(nn.Linear(40, 80), nn.BatchNorm1d(80))
    with simulated_device(MAX_VALUE_BYTES), torch.no_grad():
        before = snapshot.take_snapshot(net)
        assert snapshot.take_snapshot(net, before) is before
        tensor = net.state_dict()[name]
        assert (tensor.nbytes > MAX_VALUE_BYTES) == (name == "0.weight")
        was = tensor.clone()
        tensor.view(-1).view(torch.uint8)[-5] ^= 1
        now = snapshot.take_snapshot(net, before)
        assert [path for path in now.fingerprints if now.fingerprints[path] != before.fingerprints[path]] == [name]
        assert snapshot.take_snapshot(net, now) is now
        tensor.copy_(was)
        assert snapshot.take_snapshot(net, now) == before


def test_host_and_device_report_the_same_changes() -> None:
    def run_and_change() -> list[TensorChange]:
        conv = nn.Conv2d(3, 8, 3, bias=False)
        net = nn.Sequential(conv, nn.BatchNorm2d(8))
        conv.weight = nn.Parameter(
            torch.arange(216.0).reshape(8, 3, 3, 3).contiguous(memory_format=torch.channels_last)
        )
        return changes(net, lambda: (net(torch.ones(2, 3, 8, 8)), conv.weight[1, 2, 0, 1].neg_()))

    on_host = run_and_change()
    with simulated_device(MAX_VALUE_BYTES):
        assert run_and_change() == on_host
    assert len(on_host) == 4


def test_only_the_local_shard_of_a_distributed_tensor_is_read(transfers: list[int]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        net = nn.Linear(64, 64)
        mesh = init_device_mesh("cpu", (2,))
        net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Shard(0)]))
        local = net.weight._local_tensor  # type: ignore[attr-defined]
        transfers.clear()
        with simulated_device(), undisturbed():
            data = digests.read_device_tensors([net.weight])
            shard = fingerprint.fingerprint_of(net.weight, True, data[id(net.weight)])
            assert (shard.sharded, shard.size) == (True, local.nbytes)
            assert transfers == [16 * local.nbytes // SEGMENT]
        with simulated_device():
            assert [change.path for change in changes(net, lambda: local[0, 0].add_(1))] == ["weight"]
    finally:
        torch.distributed.destroy_process_group()
