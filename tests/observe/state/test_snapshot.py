from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.observe.state.fingerprint import MAX_VALUE_BYTES
from pytest_evalmode.trace import Site, TensorChange
from tests.nets import Net, batch

AFTER = Site("test_net.py", 7)
Act = Callable[[Net], object]


def changes(module: nn.Module, act: Callable[[], object]) -> list[TensorChange]:
    """Return the changes that an act makes to a model."""
    before = snapshot.take_snapshot(module)
    act()
    return snapshot.find_changes("net", before, snapshot.take_snapshot(module, before), modules.walk(module), AFTER)


def paths(found: list[TensorChange]) -> list[str]:
    return [change.path for change in found]


@pytest.fixture
def net() -> Net:
    net = Net().eval().requires_grad_(False)
    net.register_buffer("table", torch.arange(6.0).reshape(2, 3))
    net.register_buffer("cache", torch.zeros(2), persistent=False)
    return net


CHANGES: dict[str, tuple[Act, str, str]] = {
    "one element": (lambda n: n.head.weight[0, 0].add_(1), "head.weight", "values"),
    "through .data": (lambda n: n.head.bias.data.neg_(), "head.bias", "values"),
    "through numpy": (lambda n: n.body.weight.numpy().fill(3), "body.weight", "values"),
    "through state_dict": (lambda n: n.state_dict()["bn.bias"].add_(1), "bn.bias", "values"),
    "a buffer": (lambda n: n.get_buffer("bn.running_mean").add_(1), "bn.running_mean", "values"),
    "a counter": (lambda n: n.get_buffer("bn.num_batches_tracked").add_(1), "bn.num_batches_tracked", "values"),
    "replaced": (lambda n: setattr(n, "table", torch.ones(2, 3)), "table", "values"),
    "reshaped": (lambda n: setattr(n, "table", torch.ones(6)), "table", "shape (2, 3) -> (6,)"),
    "transposed": (lambda n: n.get_buffer("table").t_(), "table", "shape (2, 3) -> (3, 2)"),
    "resized": (lambda n: n.get_buffer("table").resize_(1), "table", "shape (2, 3) -> (1,)"),
    "converted": (
        lambda n: setattr(n, "table", n.get_buffer("table").int()),
        "table",
        "dtype torch.float32 -> torch.int32",
    ),
    "moved": (lambda n: setattr(n, "table", n.get_buffer("table").to("meta")), "table", "device cpu -> meta"),
    "removed": (lambda n: setattr(n.head, "bias", None), "head.bias", "removed"),
    "deleted": (lambda n: delattr(n, "table"), "table", "removed"),
    "added": (lambda n: n.register_buffer("more", torch.ones(1)), "more", "added"),
    "added with a module": (lambda n: n.add_module("aux", nn.LayerNorm(2, bias=False)), "aux.weight", "added"),
    "now saved": (lambda n: n.register_buffer("cache", torch.zeros(2)), "cache", "added"),
}
SAME: dict[str, Act] = {
    "nothing": lambda n: None,
    "written again": lambda n: n.load_state_dict(copy.deepcopy(n.state_dict())),
    "assigned again": lambda n: n.load_state_dict(copy.deepcopy(n.state_dict()), assign=True),
    "multiplied by one": lambda n: [p.mul_(1) for p in n.parameters()],
    "changed and restored": lambda n: [n.get_buffer("table").add_(1), n.get_buffer("table").sub_(1)],
    "replaced by a copy": lambda n: setattr(n, "table", n.get_buffer("table").clone()),
    "rearranged": lambda n: setattr(n, "table", n.get_buffer("table").t().contiguous().t()),
    "moved to shared memory": lambda n: n.share_memory(),
    "a non-persistent buffer": lambda n: n.get_buffer("cache").add_(1),
    "requires_grad": lambda n: n.requires_grad_(),
    "gradients": lambda n: setattr(n.head.weight, "grad", torch.ones(2, 4)),
    "modes": lambda n: n.train(),
    "an attribute": lambda n: setattr(n, "steps", torch.ones(1)),
    "an empty module": lambda n: n.add_module("act", nn.ReLU()),
    "a hook": lambda n: n.register_forward_hook(lambda *_: None),
    "a forward": lambda n: n(batch()),
}


@pytest.mark.parametrize(("act", "path", "what"), CHANGES.values(), ids=CHANGES)
def test_these_acts_are_a_change(net: Net, act: Act, path: str, what: str) -> None:
    (change,) = changes(net, lambda: act(net))
    assert (change.model, change.path, change.last_forward) == ("net", path, AFTER)
    assert f"{change.what} {change.before_and_after}".rstrip() == what


@pytest.mark.parametrize("act", SAME.values(), ids=SAME)
def test_these_acts_are_not_a_change(net: Net, act: Act) -> None:
    assert changes(net, lambda: act(net)) == []


@pytest.mark.parametrize(
    ("before", "now", "extent"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.5, 3.0], (1, 3, 0.5)),
        ([1.0, 2.0], [3.0, -2.0], (2, 2, 4.0)),
        ([0.0, 1.0], [-0.0, 2.0], (1, 2, 1.0)),
        ([1.0, 1.0], [float("nan"), 1.0], (1, 2, None)),
        ([True, False], [True, True], (1, 2, 1.0)),
        ([1, 2], [1, 9], (1, 2, 7.0)),
        ([1j, 1.0], [1.0, 1.0], (1, 2, pytest.approx(2**0.5))),
    ],
)
def test_a_change_has_its_extent(
    before: list[complex], now: list[complex], extent: tuple[int, int, float | None]
) -> None:
    holder = nn.Module()
    holder.register_buffer("table", torch.tensor(before))
    (change,) = changes(holder, lambda: holder.get_buffer("table").copy_(torch.tensor(now)))
    assert (change.elements, change.numel, change.max_abs) == extent


@pytest.mark.parametrize("size", [4, 300])
def test_weights_that_come_back_without_the_sign_of_a_zero_are_unchanged(size: int) -> None:
    """As weights do that a merged adapter or an exponential average replaced for a while."""
    weights = nn.Linear(size, size).requires_grad_(False)
    weights.weight.copy_(torch.eye(size)).neg_()
    assert changes(weights, lambda: weights.weight.add_(1).sub_(1)) == []
    assert paths(changes(weights, lambda: weights.weight.add_(1))) == ["weight"]


def test_changes_with_an_extent_come_first() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).requires_grad_(False)
    found = changes(model, lambda: [tensor.fill_(7) for tensor in model.state_dict().values()])
    assert paths(found) == ["0.bias", *(f"1.{name}" for name in model[1].state_dict()), "0.weight"]
    assert [change.max_abs is None for change in found] == [*[False] * 6, True]


def test_stored_values_have_a_budget() -> None:
    """Changes of tensors beyond the budget are reported without an extent."""
    count = (2 << 20) // MAX_VALUE_BYTES
    model = nn.ParameterList([nn.Parameter(torch.zeros(MAX_VALUE_BYTES // 4)) for _ in range(count)]).requires_grad_(
        False
    )
    found = changes(model, lambda: [parameter.add_(1) for parameter in model])
    assert len(found) == count
    assert {change.max_abs for change in found} == {1.0, None}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_reading_computes_no_parametrized_weight(normed: Callable[[nn.Module], nn.Module]) -> None:
    layer = normed(nn.Linear(4, 4)).train()
    saved = copy.deepcopy(layer.state_dict())
    assert changes(layer, lambda: None) == []
    assert all(torch.equal(saved[name], tensor) for name, tensor in layer.state_dict().items())


def test_pruning_removes_and_adds_tensors(net: Net) -> None:
    found = changes(net, lambda: prune.l1_unstructured(net.head, "weight", amount=0.5))  # type: ignore[no-untyped-call]
    assert {change.path: change.what for change in found} == {
        "head.weight": "removed",
        "head.weight_orig": "added",
        "head.weight_mask": "added",
    }


def test_tied_weights_are_reported_under_all_their_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    model[1].weight = model[0].weight
    assert paths(changes(model, lambda: model.get_parameter("1.weight").add_(1))) == ["0.weight", "1.weight"]
    assert changes(model, lambda: setattr(model[1], "weight", copy.deepcopy(model[0].weight))) == []


def test_a_submodule_that_is_registered_twice_is_reported_once() -> None:
    block = nn.Linear(4, 4)
    model = nn.Sequential(block, block)
    assert paths(changes(model, lambda: block.bias.data.add_(1))) == ["0.bias"]


def test_names_match_the_state_dict_without_wrappers(net: Net) -> None:
    names = list(net.state_dict())
    wrapped: tuple[nn.Module, ...] = (net, nn.DataParallel(net), cast(nn.Module, torch.compile(net, backend="eager")))
    for module in wrapped:
        assert [name for name, _ in snapshot.named_tensors(modules.walk(module))[0]] == names


def test_a_lazy_parameter_that_gets_its_shape_has_not_changed() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d()).eval()
    assert snapshot.take_snapshot(model).has_uninitialized
    assert not snapshot.take_snapshot(Net()).has_uninitialized

    def run() -> Tensor:
        output: Tensor = model(batch())
        return output

    assert changes(model, run) == []
    assert not snapshot.take_snapshot(model).has_uninitialized
    assert paths(changes(model, lambda: model.get_parameter("0.bias").data.add_(1))) == ["0.bias"]


def test_a_snapshot_counts_bytes() -> None:
    assert snapshot.take_snapshot(nn.Linear(4, 2)).bytes == 4 * (8 + 2)
    assert snapshot.take_snapshot(nn.LazyLinear(2, bias=False)).bytes == 0
    assert snapshot.take_snapshot(nn.ReLU()).bytes == 0
