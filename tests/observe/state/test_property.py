"""Random models, forwards and writes: a write is reported if, and only if, it changed a saved bit.

The result is the same with write tracking by the kernel and with full reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_evalmode.observe.state import digest_cache, digests, write_tracking
from tests.nets import only, rules, watching

FLOATS = (torch.float32, torch.float64)
NUMPY = (*FLOATS, torch.float16, torch.complex64, torch.int64, torch.uint8, torch.bool)
DTYPES = (*NUMPY, torch.bfloat16, torch.float8_e4m3fn)
SHAPES = ((), (1,), (3,), (2, 3), (2, 3, 2, 2), (96, 96))  # the values of the last one are not stored


def straight(tensor: Tensor) -> Tensor:
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim else tensor


def spread(tensor: Tensor) -> Tensor:
    """Return a tensor with a gap after every element."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@dataclass(frozen=True)
class TensorSpec:
    """A parameter or buffer of a module."""

    kind: Literal["parameter", "buffer", "non_persistent"]
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: Callable[[Tensor], Tensor]

    def make(self) -> Tensor:
        """Return small numbers without zeros: an optimizer step from one to another is exact."""
        numbers = torch.arange(torch.Size(self.shape).numel()).reshape(self.shape)
        return self.layout((numbers % 2 if self.dtype is torch.bool else numbers % 7 + 1).to(self.dtype))


class Node(nn.Module):
    def __init__(self, specs: Sequence[TensorSpec] = (), children: Sequence[Node] = ()) -> None:
        super().__init__()
        self.kinds = {f"t{i}": tensor for i, tensor in enumerate(specs)}
        for name, tensor in self.kinds.items():
            if tensor.kind == "parameter":
                self.register_parameter(name, parameter(tensor.make()))
            else:
                self.register_buffer(name, tensor.make(), persistent=tensor.kind == "buffer")
        for i, child in enumerate(children):
            self.add_module(f"c{i}", child)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


def parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point() and tensor.dtype in FLOATS)


# --- ways to write `new` to a tensor

Write = Callable[[Node, str, Tensor], object]


def through_data(node: Node, name: str, new: Tensor) -> None:
    getattr(node, name).data.copy_(new)


def through_a_view(node: Node, name: str, new: Tensor) -> None:
    getattr(node, name).detach()[...].copy_(new)


def through_copy(node: Node, name: str, new: Tensor) -> None:
    with torch.no_grad():
        getattr(node, name).copy_(new)


def through_numpy(node: Node, name: str, new: Tensor) -> None:
    assume(new.dtype in NUMPY)
    getattr(node, name).detach().numpy()[...] = new.numpy()


def through_the_state_dict(node: Node, name: str, new: Tensor) -> None:
    node.load_state_dict({name: new} if node.kinds[name].kind != "non_persistent" else {}, strict=False)


def by_assigning_data(node: Node, name: str, new: Tensor) -> None:
    getattr(node, name).data = new


def by_replacing(node: Node, name: str, new: Tensor) -> None:
    setattr(node, name, parameter(new) if node.kinds[name].kind == "parameter" else new)


def by_a_fused_step(node: Node, name: str, new: Tensor) -> None:
    tensor = getattr(node, name)
    # On anything but contiguous tensors torch's fused steps touch the wrong elements, or the gaps between them.
    assume(node.kinds[name].kind == "parameter" and tensor.requires_grad and tensor.is_contiguous())
    tensor.grad = (tensor - new).detach()
    torch.optim.SGD([tensor], lr=1, fused=True).step()


WRITES: tuple[Write, ...] = (
    through_data,
    through_a_view,
    through_copy,
    through_numpy,
    through_the_state_dict,
    by_assigning_data,
    by_replacing,
    by_a_fused_step,
)

# --- ways to make `new`, from random numbers

Alter = Callable[[Tensor, int], Tensor]


def elements(tensor: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor, one row per element."""
    return tensor.reshape(-1).view(torch.uint8).view(tensor.numel(), -1)


def a_bit(tensor: Tensor, at: int) -> Tensor:
    rows = elements(tensor)
    rows.view(-1)[at // 8 % rows.numel()] ^= 1 << (0 if tensor.dtype is torch.bool else at % 8)
    return tensor


def an_element(tensor: Tensor, at: int) -> Tensor:
    row = elements(tensor)[at % tensor.numel()]
    row.copy_(1 - row if tensor.dtype is torch.bool else 255 - row)
    return tensor


def two_elements(tensor: Tensor, at: int) -> Tensor:
    assume(tensor.numel() > 1)
    rows = elements(tensor)
    i = at % (len(rows) - 1)  # neighbors differ
    rows[[i, i + 1]] = rows[[i + 1, i]]
    return tensor


def a_dimension(tensor: Tensor, at: int) -> Tensor:
    return tensor[None]


ALTERS: tuple[Alter, ...] = (a_bit, an_element, two_elements, a_dimension)
RESHAPING = (by_assigning_data, by_replacing)

# --- the property

tensors = st.builds(
    TensorSpec,
    kind=st.sampled_from(["parameter", "buffer", "non_persistent"]),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from([straight, transposed, spread, channels_last]),
)
specs = st.lists(tensors, max_size=3)
models = st.recursive(
    st.builds(Node, specs), lambda nodes: st.builds(Node, specs, st.lists(nodes, max_size=3)), max_leaves=4
)


FILTERED = [HealthCheck.filter_too_much, HealthCheck.too_slow]


@given(model=models, data=st.data())
@settings(
    max_examples=5 * settings().max_examples,
    suppress_health_check=FILTERED,
)
def test_exactly_the_changes_are_reported(model: Node, data: st.DataObject) -> None:
    nodes = {path: node for path, node in model.eval().named_modules() if isinstance(node, Node)}
    places = [(path, name) for path, node in nodes.items() for name in node.kinds]
    assume(places)
    path, name = data.draw(st.sampled_from(places), label="tensor")
    write = data.draw(st.sampled_from(WRITES), label="write")
    alter = data.draw(st.sampled_from([a for a in ALTERS if a is not a_dimension or write in RESHAPING]), label="alter")
    at = data.draw(st.integers(0, 10**6), label="at")
    visits = st.lists(st.sampled_from(list(nodes.values())), max_size=3)
    before, after = data.draw(visits, label="before"), data.draw(visits, label="after")
    watched, harmless = data.draw(st.booleans(), label="watched"), data.draw(st.booleans(), label="harmless")

    node = nodes[path]
    new = getattr(node, name).detach().clone(memory_format=torch.contiguous_format)
    saved = node.kinds[name].kind != "non_persistent"
    with torch.no_grad(), watching(*[model] if watched else []) as g:
        for visited in before if watched else [*before, model]:
            visited(torch.ones(1))
        write(node, name, new if harmless else alter(new, at))
        for visited in after:
            visited(torch.ones(1))

    if harmless or not saved:
        assert not rules(g)
    else:
        violation = only(g, "state-mutated")
        assert violation.subjects == (f"{violation.model}.{f'{path}.{name}' if path else name}",)


# --- with and without write tracking

WINDOWS = 3
LARGE = (160, 160)
"""Large enough for write tracking."""


@dataclass(frozen=True)
class Act:
    """A write, in a window or after it."""

    window: int
    inside: bool
    path: str
    name: str
    write: Write
    alter: Alter | None
    """None to write the same values."""
    at: int

    def on(self, model: Node) -> None:
        node = model.get_submodule(self.path)
        assert isinstance(node, Node)
        tensor = getattr(node, self.name)
        new = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(node.kinds[self.name].shape)
        with torch.no_grad():
            self.write(node, self.name, new if self.alter is None else self.alter(new, self.at))


def reported(model: Node, acts: list[Act]) -> list[set[str]]:
    """Return the tensors that are reported as changed, for each window."""
    by_window = []
    for window in range(WINDOWS):
        with watching(model) as g:
            act(model, acts, window, inside=True)
        assert set(rules(g)) <= {"state-mutated"}
        by_window.append({subject.removeprefix("Node.") for each in g.violations for subject in each.subjects})
        act(model, acts, window, inside=False)
    return by_window


def changed(model: Node, acts: list[Act]) -> list[set[str]]:
    """Return the tensors that did change, for each window."""
    by_window = []
    for window in range(WINDOWS):
        before = {name: elements(tensor).clone() for name, tensor in model.state_dict().items()}
        act(model, acts, window, inside=True)
        now = model.state_dict()
        by_window.append({name for name, was in before.items() if not torch.equal(was, elements(now[name]))})
        act(model, acts, window, inside=False)
    return by_window


def act(model: Node, acts: list[Act], window: int, *, inside: bool) -> None:
    for each in acts:
        if each.window == window and each.inside == inside:
            each.on(model)


@contextmanager
def everything_tracked() -> Iterator[None]:
    with mock.patch.object(digest_cache, "_MIN_BYTES", 0), mock.patch.object(digest_cache, "_MAX_PENALTY", 1000):
        yield


large = st.builds(
    TensorSpec,
    kind=st.sampled_from(["parameter", "buffer", "non_persistent"]),
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([LARGE, (3,)]),
    layout=st.sampled_from([straight, straight, transposed]),
)


@pytest.mark.skipif(write_tracking.tracker() is None, reason="the kernel does not track writes")
@given(specs=st.lists(large, min_size=1, max_size=4), below=st.lists(large, max_size=2), data=st.data())
@settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=FILTERED,
)
def test_write_tracking_and_full_reads_report_the_same(
    specs: list[TensorSpec], below: list[TensorSpec], data: st.DataObject
) -> None:
    model = Node(specs, [Node(below)]).eval()
    places = [("", name) for name in model.kinds] + [("c0", f"t{i}") for i in range(len(below))]

    def an_act() -> Act:
        path, name = data.draw(st.sampled_from(places))
        window, inside, at = (data.draw(st.integers(0, n)) for n in (WINDOWS - 1, 1, 10**6))
        write = data.draw(st.sampled_from(WRITES))
        alter = data.draw(st.sampled_from([None, a_bit, an_element, two_elements]))
        return Act(window, bool(inside), path, name, write, alter, at)

    acts = [an_act() for _ in range(data.draw(st.integers(0, 4), label="acts"))]
    expected = changed(deepcopy(model), acts)
    with everything_tracked():
        with mock.patch.object(digests, "digest", wraps=digests.digest) as tracked:
            assert reported(deepcopy(model), acts) == expected
        with (
            mock.patch.object(write_tracking, "tracker", return_value=None),
            mock.patch.object(digests, "digest", wraps=digests.digest) as read,
        ):
            assert reported(deepcopy(model), acts) == expected
        if not acts and TensorSpec("parameter", torch.float32, LARGE, straight) in specs:
            assert tracked.call_count < read.call_count
