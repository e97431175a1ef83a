"""Write tracking by the kernel gives the same result as reading everything."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pytest_evalmode import guard
from pytest_evalmode.errors import HygieneError
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import digest_cache, digests, snapshot, write_tracking
from pytest_evalmode.observe.state.fingerprint import undisturbed
from pytest_evalmode.observe.state.memory_mappings import PAGE, Mappings, Span
from pytest_evalmode.observe.state.snapshot import Snapshot
from tests import forked

LIBC = ctypes.CDLL(None, use_errno=True)
SIDE = 512


@pytest.fixture(autouse=True)
def _tracking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Track small models too, and leave nothing tracked or disabled behind."""
    monkeypatch.setattr(digest_cache, "_MIN_BYTES", 0)
    write_tracking.reset()
    if write_tracking.tracker() is None:
        pytest.skip("this kernel does not track writes, or a filter forbids it")
    yield
    write_tracking.reset()


class Pair(nn.Module):
    """A model with a weight and a buffer of 1 MiB each, and small tensors."""

    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE, SIDE)
        self.register_buffer("table", torch.rand(SIDE, SIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def take(model: nn.Module, previous: Snapshot | None = None) -> Snapshot:
    return snapshot.take_snapshot(model, previous)


def skipped_bytes(model: nn.Module) -> int:
    """Return how many bytes of its large tensors do not have to be read."""
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in digests.find_large(model.state_dict().values()).values()}
    with patch.object(digests, "digest", wraps=digests.digest) as digest:
        take(model)
    read: int = sum(call.args[1] for call in digest.call_args_list)
    return sum(sizes.values()) - read


def find_changes(model: nn.Module, before: Snapshot) -> set[str]:
    """Return what changed, with write tracking; reading everything must give the same result."""
    parts = modules.walk(model)
    with undisturbed():
        tracked = snapshot.take_snapshot(model, before)
        with patch.object(digests, "digest_cache", _EmptyCache()):
            read = snapshot._read_snapshot(snapshot.named_tensors(parts)[0], [], before, {})
    by_kernel = {change.path for change in snapshot.find_changes("model", before, tracked, parts, None)}
    assert by_kernel == {change.path for change in snapshot.find_changes("model", before, read, parts, None)}
    return by_kernel


class _EmptyCache:
    """A digest cache that knows and tracks nothing."""

    def find_digests(self, ranges: object) -> dict[digest_cache.Range, bytes]:
        return {}

    def track(self, tensors: object) -> list[digest_cache.TrackedBlock]:
        return []


def in_thread(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def in_child(act: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        act()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def pages(tensor: torch.Tensor) -> Span:
    """Return the whole pages of a tensor."""
    address = tensor.data_ptr()
    return Span(-(-address // PAGE) * PAGE, (address + tensor.nbytes) // PAGE * PAGE)


def bytes_of(tensor: torch.Tensor) -> Any:
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def step(model: Pair, optimizer: Any) -> None:
    model(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()


def read_into(model: Pair) -> None:
    """Let the kernel write, with `read()`."""
    with open("/dev/zero", "rb", buffering=0) as file:
        file.readinto(memoryview(bytes_of(model.layer.weight)))


def dont_need(model: Pair, number: int) -> None:
    start = pages(model.layer.weight).start
    assert LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(number * PAGE), mmap.MADV_DONTNEED) == 0


def map_anew(model: Pair) -> None:
    """Map other, empty memory at the same address."""
    start = pages(model.layer.weight).start
    LIBC.mmap.restype = ctypes.c_void_p
    fixed, prot = 0x10, mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed
    address = LIBC.mmap(ctypes.c_void_p(start), ctypes.c_size_t(4 * PAGE), prot, flags, -1, ctypes.c_long(0))
    assert address == start


def move_away(model: Pair) -> None:
    """Move the pages away with `mremap`, which leaves empty ones."""
    start = pages(model.layer.weight).start
    LIBC.mremap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(4 * PAGE)
    may_move, dont_unmap = 1, 4
    assert LIBC.mremap(ctypes.c_void_p(start), size, size, may_move | dont_unmap, None) != ctypes.c_void_p(-1).value


def allocate_again(model: Pair) -> None:
    """Free the weight and allocate it again, probably at the same address."""
    model.layer.weight.data = torch.empty(0)
    model.layer.weight.data = torch.full((SIDE, SIDE), 7.0)


def swap(model: Pair) -> None:
    torch.utils.swap_tensors(model.layer.weight, nn.Parameter(torch.zeros(SIDE, SIDE)))  # type: ignore[no-untyped-call]


def set_other(model: Pair) -> None:
    with torch.no_grad():
        model.layer.weight.set_(torch.zeros(SIDE, SIDE))  # type: ignore[call-overload]


def resize(model: Pair) -> None:
    with torch.no_grad():
        model.table.resize_(SIDE, 2 * SIDE)


def work_in_loader(model: Pair) -> None:
    """Write to private memory in another process, which does not affect this one."""

    def zero(items: list[int]) -> list[int]:
        model.table.zero_()
        return items

    items: Any = [1, 2]
    assert list(DataLoader(items, num_workers=1, collate_fn=zero, multiprocessing_context="fork"))


WEIGHT, TABLE = {"layer.weight"}, {"table"}
BOTH = {"layer.weight", "layer.bias"}
ACTS: dict[str, tuple[Callable[[Pair], object], set[str]]] = {
    "nothing": (lambda m: None, set()),
    "a read": (lambda m: m.layer.weight.sum(), set()),
    "a forward": (lambda m: m(torch.ones(1, SIDE)), set()),
    "an element": (lambda m: m.layer.weight.data[300].fill_(1), WEIGHT),
    "the first element": (lambda m: m.table.view(-1)[:1].add_(1), TABLE),
    "the last element": (lambda m: m.table.view(-1)[-1:].add_(1), TABLE),
    "a small tensor": (lambda m: m.layer.bias.data.add_(1), {"layer.bias"}),
    "equal bits": (lambda m: m.layer.weight.data.mul_(1), set()),
    "changed and restored": (lambda m: m.table.neg_().neg_(), set()),
    "numpy": (lambda m: m.table.numpy().__setitem__((200, 1), 5.0), TABLE),
    "dlpack": (lambda m: torch.utils.dlpack.from_dlpack(m.table).fill_(5.0), TABLE),
    "a storage": (lambda m: m.table.untyped_storage().copy_(torch.zeros(SIDE, SIDE).untyped_storage()), TABLE),
    "other data": (lambda m: setattr(m.layer.weight, "data", torch.zeros(SIDE, SIDE)), WEIGHT),
    "equal data at another address": (lambda m: setattr(m.layer.weight, "data", m.layer.weight.data.clone()), set()),
    "another parameter": (lambda m: setattr(m.layer, "weight", nn.Parameter(torch.zeros(SIDE, SIDE))), WEIGHT),
    "no parameter": (lambda m: delattr(m.layer, "bias"), {"layer.bias"}),
    "one more buffer": (lambda m: m.layer.register_buffer("more", torch.zeros(3)), {"layer.more"}),
    "another layer": (lambda m: setattr(m, "layer", nn.Linear(SIDE, SIDE)), BOTH),
    "turned": (lambda m: m.table.t_(), TABLE),
    "negated by a flag": (lambda m: setattr(m, "table", torch._neg_view(m.table)), TABLE),
    "of another type": (lambda m: m.half(), {"layer.weight", "layer.bias", "table"}),
    "set_": (set_other, WEIGHT),
    "resize_": (resize, TABLE),
    "swap_tensors": (swap, WEIGHT),
    "ctypes": (lambda m: ctypes.memset(m.table.data_ptr() + 9 * PAGE, 0, 8), TABLE),
    "the kernel": (read_into, WEIGHT),
    "a thread": (lambda m: in_thread(m.table.zero_), TABLE),
    "a child": (lambda m: in_child(m.table.zero_), set()),
    "a loader's worker": (work_in_loader, set()),
    "SGD": (lambda m: step(m, torch.optim.SGD(m.parameters(), 0.1)), BOTH),
    "fused SGD": (lambda m: step(m, torch.optim.SGD(m.parameters(), 0.1, fused=True)), BOTH),
    "fused Adam": (lambda m: step(m, torch.optim.Adam(m.parameters(), fused=True)), BOTH),
    "fused AdamW": (lambda m: step(m, torch.optim.AdamW(m.parameters(), fused=True)), BOTH),
    "MADV_DONTNEED": (lambda m: dont_need(m, 3), WEIGHT),
    "mapped anew": (map_anew, WEIGHT),
    "mremap": (move_away, WEIGHT),
    "freed and allocated": (allocate_again, WEIGHT),
}


@pytest.mark.parametrize("name", ACTS)
def test_every_write_is_noticed(name: str) -> None:
    act, changed = ACTS[name]
    model = Pair()
    before = take(model)
    assert skipped_bytes(model) == 2 * 4 * SIDE**2
    act(model)
    assert find_changes(model, before) == changed
    after = take(model)
    assert find_changes(model, after) == set()
    model.table.add_(1)
    assert "table" in find_changes(model, after)


@pytest.mark.parametrize("name", ["an element", "fused Adam", "MADV_DONTNEED", "swap_tensors"])
def test_a_guard_reports_the_write(name: str) -> None:
    model = Pair().eval()
    for _ in range(2):
        with guard(model):
            pass
    with pytest.raises(HygieneError, match=r"layer\.weight"), guard(model):
        ACTS[name][0](model)


def plain(tensor: torch.Tensor) -> nn.Module:
    return nn.ParameterList([nn.Parameter(tensor, requires_grad=False)])


def test_shared_memory_is_read() -> None:
    model = Pair()
    model.share_memory()
    before = take(model)
    assert skipped_bytes(model) == 0
    in_child(model.table.zero_)
    assert find_changes(model, before) == TABLE


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "private"])
def test_a_file_is_read(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * SIDE**2))
    model = plain(torch.from_file(str(path), shared=shared, size=SIDE**2))
    before = take(model)
    assert skipped_bytes(model) == 0
    with path.open("r+b") as file:
        file.seek(5 * PAGE)
        file.write(b"\1")
    assert find_changes(model, before) == {"0"}


def test_writes_to_huge_pages_are_noticed() -> None:
    size = 8 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area.madvise(mmap.MADV_HUGEPAGE)
        tensor = torch.frombuffer(area, dtype=torch.uint8).fill_(1)
        model, area_address = plain(tensor), tensor.data_ptr()
        before = take(model)
        assert skipped_bytes(model) > 0
        assert find_changes(model, before) == set()
        ctypes.memset(area_address + (5 << 20), 2, 1)
        assert find_changes(model, before) == {"0"}
        after = take(model)
        start = -(-area_address // (2 << 20)) * (2 << 20)
        assert LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(2 << 20), mmap.MADV_DONTNEED) == 0
        assert find_changes(model, after) == {"0"}
        del model, tensor
        gc.collect()


def test_overlapping_tensors_of_two_models_are_both_compared() -> None:
    """Tracking the pages of one anew loses what the kernel knew about the other."""
    base = torch.rand(4 * SIDE, SIDE)
    whole, part = plain(base), plain(base[SIDE : 2 * SIDE])
    for _ in range(3):
        was_whole, was_part = take(whole), take(part)
        base[SIDE + 7].add_(1)
        assert find_changes(whole, was_whole) == {"0"}
        assert find_changes(part, was_part) == {"0"}


def test_a_write_between_tracking_and_reading_is_noticed() -> None:
    tensor = torch.zeros(SIDE, SIDE)
    range_ = tensor.data_ptr(), tensor.nbytes
    (block,) = digest_cache.track({range_: tensor})
    tensor[100] = 1
    block.digest = b"read before that"
    assert digest_cache.find_digests({range_: None}) == {}


def test_a_block_that_was_tracked_again_ignores_the_old_digest() -> None:
    tensor = torch.zeros(SIDE, SIDE)
    range_ = tensor.data_ptr(), tensor.nbytes
    (slow,) = digest_cache.track({range_: tensor})
    tensor[100] = 1
    (quick,) = digest_cache.track({range_: tensor})
    slow.digest = b"read before that"
    assert digest_cache.find_digests({range_: None}) == {}
    quick.digest = b"read since"
    assert digest_cache.find_digests({range_: None}) == {range_: b"read since"}


def test_memory_that_is_written_every_time_is_not_tracked() -> None:
    model = Pair()
    for _ in range(6):
        before = take(model)
        model.table.add_(1)
        assert find_changes(model, before) == TABLE
    take(model)
    assert skipped_bytes(model) == 4 * SIDE**2
    assert write_tracking.tracker().find_unwritten([pages(model.table)]) == set()  # type: ignore[union-attr]


def test_dead_tensors_are_not_tracked() -> None:
    model = Pair()
    take(model)
    cache = digest_cache._cache
    before = {model.layer.weight.data_ptr(), model.table.data_ptr()}
    assert {range_[0] for range_ in cache._blocks} == before
    del model
    gc.collect()
    other = Pair()
    take(other)
    assert {range_[0] for range_ in cache._blocks} == {other.layer.weight.data_ptr(), other.table.data_ptr()}


def test_an_error_of_the_kernel_disables_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pair()
    before = take(model)

    def fail(*_: object) -> set[Span]:
        raise OSError

    monkeypatch.setattr(write_tracking.WriteTracker, "find_unwritten", fail)
    model.table.add_(1)
    assert find_changes(model, before) == TABLE
    assert write_tracking.tracker() is None


def test_a_closed_descriptor_looks_like_a_write() -> None:
    model = Pair()
    before = take(model)
    tracker = write_tracking.tracker()
    assert tracker is not None
    os.close(tracker._uffd)
    tracker._uffd = os.open(os.devnull, os.O_RDONLY)  # so that the old descriptor is not closed twice
    model.table.add_(1)
    assert find_changes(model, before) == TABLE


def test_a_child_does_not_track() -> None:
    model = Pair()
    before = take(model)

    def check() -> None:
        ok = write_tracking.tracker() is None and skipped_bytes(model) == 0
        model.table.add_(1)
        os._exit(0 if ok and find_changes(model, before) == TABLE else 1)

    in_child(check)
    assert skipped_bytes(model) == 2 * 4 * SIDE**2


def test_tracking_can_be_disabled_and_enabled_again() -> None:
    model = Pair()
    take(model)
    write_tracking.disable()
    assert write_tracking.tracker() is None
    assert skipped_bytes(model) == 0
    for _ in range(4):
        write_tracking.reset()
        take(model)
        assert skipped_bytes(model) == 2 * 4 * SIDE**2


def test_the_environment_does_not_disable_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    write_tracking.reset()
    monkeypatch.setenv("EVALMODE_WRITES", "off")
    assert write_tracking.tracker() is not None


def test_nothing_is_tracked_if_the_mappings_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mappings, "registrations_left", lambda self: 0)
    monkeypatch.setattr(write_tracking.tracker(), "_registrations_left", 0)
    model = Pair()
    take(model)
    assert skipped_bytes(model) == 0


REFUSED = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
NUMBER = {number}
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, NUMBER), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]  # EPERM, or allowed
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(len(rules), ctypes.addressof(program)))) == 0

import torch
from pytest_evalmode import guard
from pytest_evalmode.errors import HygieneError
from pytest_evalmode.observe.state import write_tracking
write_tracking.reset()
model = torch.nn.Linear(512, 512).eval()
with guard(model):
    pass
assert write_tracking.tracker() is None
try:
    with guard(model):
        model.weight.data.zero_()
except HygieneError as error:
    assert "weight" in str(error)
    print("reported")
"""


@pytest.mark.slow
def test_everything_is_read_if_seccomp_refuses_userfaultfd(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(REFUSED.format(number=write_tracking._NR_USERFAULTFD[platform.machine()]), encoding="utf-8")
    result = forked.run_script(script)
    assert result.stdout == "reported\n", result.stderr
