"""Fingerprints of every kind of tensor: equal bits are equal, others are not, and reading has no side effects."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_evalmode.observe.state.fingerprint import (
    MAX_VALUE_BYTES,
    Fingerprint,
    fingerprint_of,
    is_unchanged,
    stored_values,
    undisturbed,
)
from tests import forked

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:torch.quantize", "ignore:The PyTorch API of nested tensors", "ignore:ComplexHalf"
)

Make = Callable[[Tensor], Tensor]


def read(tensor: Tensor, store_values: bool = True) -> Fingerprint:
    with undisturbed():
        return fingerprint_of(tensor, store_values)


def equal(before: Tensor | Fingerprint, now: Tensor) -> bool:
    """Return whether two tensors count as equal; the first may be a fingerprint."""
    old = before if isinstance(before, Fingerprint) else read(before)
    with undisturbed():
        return is_unchanged(old, fingerprint_of(now, old.has_values), now)


def memory(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's storage, to write to them without changing its version."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def square() -> Tensor:
    """Return sixteen different values that the quantized types can represent."""
    return torch.arange(16.0).reshape(4, 4)


# --- dtypes

# Quantized types are in the next section.
DTYPES = sorted(
    {kind for kind in vars(torch).values() if isinstance(kind, torch.dtype) and not str(kind).startswith("torch.q")},
    key=str,
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both_sizes = pytest.mark.parametrize("length", [8, MAX_VALUE_BYTES + 8], ids=["values", "digest"])


def numbered(dtype: torch.dtype, length: int) -> Tensor:
    """Return a tensor whose bytes count up; for bool they alternate between 0 and 1."""
    tensor = torch.empty(length, dtype=dtype)
    memory(tensor).copy_(torch.arange(memory(tensor).numel()) % (2 if dtype is torch.bool else 251))
    return tensor


@both_sizes
@every_dtype
def test_equal_bits_are_equal(dtype: torch.dtype, length: int) -> None:
    assert equal(numbered(dtype, length), numbered(dtype, length))


@both_sizes
@every_dtype
def test_one_flipped_bit_is_noticed(dtype: torch.dtype, length: int) -> None:
    tensor = numbered(dtype, length)
    before = read(tensor)
    memory(tensor)[-1] ^= 1
    assert not equal(before, tensor)
    memory(tensor)[-1] ^= 1
    assert equal(before, tensor)


@both_sizes
@every_dtype
def test_two_swapped_elements_are_noticed(dtype: torch.dtype, length: int) -> None:
    tensor = numbered(dtype, length)
    before = read(tensor)
    elements = memory(tensor).view(length, -1)
    elements[[0, 1]] = elements[[1, 0]]
    assert not equal(before, tensor)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(2, 2),
        torch.zeros(4, 1),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, device="meta"),
        torch.zeros(0),
        torch.tensor(0.0),
    ],
    ids=lambda t: f"{tuple(t.shape)}-{t.dtype}-{t.device}",
)
def test_the_same_bits_in_another_shape_dtype_or_device_differ(other: Tensor) -> None:
    assert not equal(torch.zeros(4), other)
    assert not equal(other, torch.zeros(4))


@pytest.mark.parametrize(("before", "now"), [(1.0, float("nan")), (float("inf"), float("-inf")), (0.0, 1e-45)])
def test_nans_and_infinities_are_compared_by_bits(before: float, now: float) -> None:
    assert not equal(torch.full((3,), before), torch.full((3,), now))
    assert equal(torch.full((3,), now), torch.full((3,), now))


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [4, 5000, 40_000, 3_000_000])
def test_the_sign_of_a_zero_does_not_count(dtype: torch.dtype, size: int) -> None:
    positive = torch.arange(size).remainder(3).sub(1).relu().to(dtype)
    negative = torch.where(positive == 0, torch.tensor(-0.0, dtype=dtype), positive)
    assert equal(positive, negative)
    assert equal(negative, positive)
    other = negative.clone()
    other[-1] += 1
    assert not equal(negative, other)
    assert not equal(other, positive)


def test_a_layout_may_change_with_the_sign_of_a_zero() -> None:
    tensor = torch.tensor([[-0.0, 1.0], [2.0, -0.0]])
    assert equal(tensor, (tensor + 0.0).T.contiguous().T)
    assert not equal(tensor, (tensor + 0.0).T)


def test_integers_have_no_signed_zero() -> None:
    smallest = torch.full((5000,), torch.iinfo(torch.int32).min, dtype=torch.int32)
    assert not equal(smallest, torch.zeros(5000, dtype=torch.int32))


# --- layouts


def from_base(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Make:
    return lambda t: torch.as_strided(t.clone(), shape, stride, offset)


STRIDED: dict[str, Make] = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.t().contiguous().t(),
    "a view of rows": lambda t: torch.cat([t, t])[:4],
    "every other column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "channels last": lambda t: t.reshape(1, 4, 2, 2).contiguous(memory_format=torch.channels_last),
    "expanded": lambda t: t.clone().expand(3, 4, 4),
    "overlapping": from_base((3, 4), (2, 1)),
    "with gaps": from_base((2, 2), (8, 3), 1),
    "0-dim": lambda t: t[1, 2].clone(),
    "conjugate": lambda t: torch.complex(t, t + 1).conj(),
    "negative": lambda t: torch.complex(t, t + 1).conj().imag,
    "parameter": lambda t: nn.Parameter(t.clone()),
    "frozen parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "buffer": lambda t: nn.Buffer(t.clone()),
    "part of a graph": lambda t: t.clone().requires_grad_() * 1,
    "subclass": lambda t: t.clone().as_subclass(Tagged),
    "large": lambda t: t.repeat(64, 64),
    "large and transposed": lambda t: t.repeat(64, 64).t(),
    "large with gaps": lambda t: t.repeat(64, 64)[:, ::2],
}


class Tagged(Tensor):
    """A subclass that does not wrap other tensors."""


def pair(one: Tensor, other: Tensor) -> Tensor:
    wrapped: Tensor = TwoTensor(one, other)  # type: ignore[no-untyped-call]
    return wrapped


def wrapper(tensor: Tensor) -> Tensor:
    return pair(tensor.clone(), tensor.clone())


def inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def jagged(tensor: Tensor) -> list[Tensor]:
    return [row[: 4 - i] for i, row in enumerate(tensor.clone())]


def per_channel(dtype: torch.dtype) -> Make:
    scales, zeros = torch.full((4,), 1.0), torch.zeros(4)
    return lambda t: torch.quantize_per_channel(t, scales, zeros, 0, dtype)


UNUSUAL: dict[str, Make] = {
    "coo": lambda t: t.to_sparse(),
    "coo, uncoalesced": lambda t: torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), t.flatten()[:2], (4, 4)),
    "hybrid coo": lambda t: t.to_sparse(1),
    "csr": lambda t: t.to_sparse_csr(),
    "csc": lambda t: t.to_sparse_csc(),
    "bsr": lambda t: t.to_sparse_bsr((2, 2)),
    "bsc": lambda t: t.to_sparse_bsc((2, 2)),
    "nested, jagged": lambda t: torch.nested.nested_tensor(jagged(t), layout=torch.jagged),
    "nested, strided": lambda t: torch.nested.nested_tensor(jagged(t), layout=torch.strided),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quint8": lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.quint8),
    "qint8": lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8),
    "qint32": lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint32),
    "qint8 per channel": per_channel(torch.qint8),
    "quint4x2 per channel": per_channel(torch.quint4x2),
    "wrapper subclass": wrapper,
    "wrapper of a wrapper": lambda t: pair(wrapper(t), wrapper(t)),
    "inference tensor": inference,
    "parameter made of a wrapper": lambda t: nn.Parameter(wrapper(t)),
}
KINDS = STRIDED | UNUSUAL
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def changed(i: tuple[int, int], j: tuple[int, int]) -> Tensor:
    """Return the square with two elements swapped."""
    tensor = square()
    tensor[i], tensor[j] = square()[j], square()[i]
    return tensor


@every_kind
def test_equal_content_is_equal(make: Make) -> None:
    assert equal(make(square()), make(square()))


@every_kind
def test_one_changed_element_is_noticed(make: Make) -> None:
    other = square()
    other[1, 2 if make is STRIDED["0-dim"] else 0] += 1
    if make is UNUSUAL["coo, uncoalesced"]:
        other = square() + torch.eye(4)
    assert not equal(make(square()), make(other))


@every_kind
def test_two_changed_elements_are_noticed(make: Make) -> None:
    if make is STRIDED["0-dim"]:
        assert not equal(make(square()), make(changed((1, 2), (0, 1))))
    else:
        assert not equal(make(square()), make(changed((0, 1), (1, 0))))


@every_kind
def test_reading_has_no_side_effects(make: Make) -> None:
    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def state() -> tuple[object, ...]:
        version = None if tensor.is_inference() else tensor._version
        return version, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), bytes(torch.get_rng_state().numpy())

    seen: list[object] = []
    tensor = make(square())
    before = state()
    with Operators(), Functions(), undisturbed():  # type: ignore[no-untyped-call]
        before_read = fingerprint_of(tensor)
        assert is_unchanged(before_read, fingerprint_of(tensor), tensor)
    assert not seen
    assert state() == before
    assert tensor.grad is None if tensor.is_leaf else tensor.grad_fn is not None


@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_a_change_of_layout_does_not_fail(make: Make) -> None:
    """It may or may not count as a change, but must be the same both ways."""
    assert equal(square(), make(square())) == equal(make(square()), square())
    assert not equal(square() + 1, make(square()))
    assert not equal(make(square() + 1), square())


def test_conjugate_and_negative_views_count_by_their_values() -> None:
    number = torch.complex(square(), square() + 1)
    conjugate, negative = number.conj(), number.conj().imag
    assert conjugate.is_conj()
    assert negative.is_neg()
    assert equal(conjugate, conjugate.resolve_conj())
    assert equal(negative, negative.resolve_neg())
    assert not equal(number, conjugate)
    assert not equal(number.imag, negative)


def test_the_layout_in_memory_does_not_count() -> None:
    image = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for arranged in (
        image.contiguous(memory_format=torch.channels_last),
        image.transpose(0, 3).contiguous().transpose(0, 3),
        image.repeat_interleave(2, 3)[..., ::2],
    ):
        assert arranged.stride() != image.stride()
        assert equal(image, arranged)
        assert equal(arranged, image)


@pytest.mark.parametrize("side", [4, 64], ids=["values", "digest"])
def test_the_layout_in_memory_hides_no_change(side: int) -> None:
    square = torch.arange(float(side * side)).reshape(side, side)
    before = read(square)
    assert not equal(before, square.t())  # the same bytes, read another way
    square.t_()
    assert not equal(before, square)
    other = square.t().contiguous(memory_format=torch.contiguous_format).t().clone()
    other[0, 1] += 1
    assert not equal(read(square), other)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if not str(d).startswith(("torch.int", "torch.uint"))], ids=str)
def test_rearranged_tensors_of_any_dtype_are_compared_by_value(dtype: torch.dtype) -> None:
    tensor = numbered(dtype, 16).view(4, 4)
    arranged = torch.empty_strided((4, 4), (1, 4), dtype=dtype)
    memory(arranged).view(4, 4, -1).copy_(memory(tensor).view(4, 4, -1).transpose(0, 1))
    assert equal(tensor, arranged)
    memory(arranged)[-1] ^= 1
    assert not equal(tensor, arranged)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_empty_tensors_are_equal_if_their_shapes_are(shape: tuple[int, ...]) -> None:
    assert equal(torch.empty(shape), torch.empty(shape))
    assert not equal(torch.empty(shape), torch.empty((*shape, 1)))
    assert stored_values(read(torch.empty(shape))) is None


def test_equal_values_with_other_indices_differ() -> None:
    one, other = torch.zeros(4, 4), torch.zeros(4, 4)
    one[0, 1] = other[1, 0] = 1.0
    for make in (UNUSUAL["coo"], UNUSUAL["csr"], UNUSUAL["csc"]):
        assert not equal(make(one), make(other))


def test_equal_integers_with_another_scale_differ() -> None:
    def quantized(scale: float, zero: int) -> Tensor:
        return torch._make_per_tensor_quantized_tensor(torch.ones(4, dtype=torch.uint8), scale, zero)

    assert equal(quantized(0.5, 1), quantized(0.5, 1))
    assert not equal(quantized(0.5, 1), quantized(0.25, 1))
    assert not equal(quantized(0.5, 1), quantized(0.5, 2))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_equal_values_with_other_offsets_differ(layout: torch.layout) -> None:
    rows = torch.arange(4.0)
    one, other = (torch.nested.nested_tensor([rows[:i], rows[i:]], layout=layout) for i in (1, 3))
    assert not equal(one, other)


def test_lengths_cached_by_a_nested_tensor_are_not_a_change() -> None:
    nested: Any = torch.nested.nested_tensor_from_jagged(torch.ones(5, 4), torch.tensor([0, 2, 5]))
    before = read(nested)
    parts = len(nested.__tensor_flatten__()[0])
    torch.softmax(nested, 1)
    assert len(nested.__tensor_flatten__()[0]) > parts  # it has cached the length of its longest row
    assert equal(before, nested)
    nested.values()[0, 0] = 2
    assert not equal(before, nested)


def test_equal_values_and_offsets_with_other_lengths_differ() -> None:
    def nested(*lengths: int) -> Tensor:
        values, offsets = torch.ones(5, 4), torch.tensor([0, 2, 5])
        return torch.nested.nested_tensor_from_jagged(values, offsets, lengths=torch.tensor(lengths))

    assert equal(nested(1, 3), nested(1, 3))
    assert not equal(nested(1, 3), nested(2, 2))


# --- tensors without content


FAKE = FakeTensorMode()
EMPTY: dict[str, Make] = {"meta": lambda t: t.to("meta"), "fake": lambda t: FAKE.from_tensor(t)}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_tensors_without_content_are_compared_by_shape_and_dtype(make: Make) -> None:
    assert equal(make(square()), make(square() + 1))
    assert stored_values(read(make(square()))) is None
    assert not equal(make(square()), make(square()[:2]))
    assert not equal(make(square()), make(square().double()))


def test_a_lazy_parameter_that_gets_its_shape_differs() -> None:
    weight = nn.LazyLinear(2).weight
    before = read(weight)
    assert not before.initialized
    assert equal(before, weight)
    weight.materialize((2, 3))
    assert not equal(before, weight)


@pytest.mark.parametrize("transform", [torch.func.vmap, lambda f: torch.func.grad(lambda t: f(t).sum())])
def test_tensors_wrapped_by_torch_func_can_be_read(transform: Callable[[Make], Make]) -> None:
    """They have no memory: reading them must not fail."""

    def body(tensor: Tensor) -> Tensor:
        assert equal(tensor, tensor)
        return tensor * 2

    assert transform(body)(square()).shape == (4, 4)


RELEASED = """
import torch
from torch import nn
from pytest_evalmode import guard

model = nn.Linear(64, 64).eval()
model.weight.untyped_storage().resize_(0)
with guard(model):
    pass
"""


@pytest.mark.slow
def test_a_tensor_with_released_memory_can_be_read(tmp_path: Path) -> None:
    """FSDP releases memory between forwards.  Runs in a process of its own, since a read from there would crash."""
    script = tmp_path / "released.py"
    script.write_text(RELEASED, encoding="utf-8")
    run = forked.run_script(script)
    assert (run.returncode, run.stderr) == (0, "")


def test_distributed_tensors_are_compared_by_value() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        one, equal_one, other = (
            distribute_tensor(t, mesh, [Shard(0)]) for t in (square(), square(), changed((0, 1), (1, 0)))
        )
        assert equal(one, equal_one)
        assert not equal(one, other)
        assert not equal(one, one.to_local())
    finally:
        torch.distributed.destroy_process_group()


# --- stored values


def test_values_are_stored_for_small_tensors_only() -> None:
    small, large = torch.arange(MAX_VALUE_BYTES // 8), torch.arange(MAX_VALUE_BYTES // 8 + 1)
    stored = stored_values(read(small))
    assert stored is not None
    assert torch.equal(stored, small.flatten())
    for digest in (read(large), read(small, store_values=False)):
        assert stored_values(digest) is None
        assert len(digest.bits) == 16


def test_stored_values_are_a_copy() -> None:
    tensor = square()
    before = read(tensor)
    tensor.zero_()
    stored = stored_values(before)
    assert stored is not None
    assert torch.equal(stored, square().flatten())


@pytest.mark.parametrize("store_values", [True, False])
def test_digests_and_stored_values_give_the_same_result(store_values: bool) -> None:
    before = read(square(), store_values)
    assert equal(before, square())
    assert not equal(before, square() + torch.eye(4))


# --- the garbage collector


@pytest.mark.parametrize("switch", [gc.disable, gc.enable])
def test_the_users_setting_of_the_garbage_collector_is_kept(switch: Callable[[], None]) -> None:
    """Another thread of the test sets it while a tensor is read."""
    (gc.enable if switch is gc.disable else gc.disable)()
    try:
        with undisturbed():
            thread = Thread(target=switch)
            thread.start()
            thread.join()
        assert gc.isenabled() is (switch is gc.enable)
    finally:
        gc.enable()


def test_a_read_leaves_the_garbage_collector_alone() -> None:
    with undisturbed():
        assert gc.isenabled()
        assert gc.get_threshold()[0]
