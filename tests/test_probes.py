"""The probes: each finds its fault, names where it shows first, passes the look-alike, and leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pytest_evalmode import HygieneError
from pytest_evalmode.probes import assert_batch_independent, assert_eval_matters, assert_repeatable
from tests.nets import Net, batch


class Sticky(nn.Module):
    """Remembers the first input that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.first: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x
        y: Tensor = self.fc(x)
        return y + self.first


class Triggered(nn.Module):
    """Behaves otherwise once it has seen a large first value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.seen = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= bool(x[0, 0] > 20)
        y: Tensor = self.fc(x)
        return y + int(self.seen)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.fc(x)
        return y + self.calls


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 64)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x))


class Centred(nn.Module):
    """Takes the mean of the batch out."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Positional(nn.Module):
    """Another weight for each place in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, len(x) + 1)[:, None]


def bert() -> BertModel:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertModel(config)


def ids() -> dict[str, Tensor]:
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(1, 50, (3, 6)) * mask, "attention_mask": mask}


def test_a_model_is_repeatable() -> None:
    assert_repeatable(Net(), batch())
    assert_repeatable(bert(), **ids())


def test_a_cache_of_other_inputs_is_found() -> None:
    with pytest.raises(
        AssertionError, match=r"the output differs again after other inputs.*the model itself was the first"
    ):
        assert_repeatable(Triggered(), torch.arange(40.0).reshape(10, 4))
    assert_repeatable(Sticky(), batch())  # it is what it saw first that it remembers: a copy saw these


@pytest.mark.parametrize(("model", "where"), [(Counting(), "the model itself"), (Dropping(), "the model itself")])
def test_what_gives_otherwise_a_second_time_is_found(model: nn.Module, where: str) -> None:
    with pytest.raises(AssertionError, match=f"a second time, by up to .*; {where} was the first"):
        assert_repeatable(nn.Sequential(model)[0], batch())


def test_the_module_is_named_that_differs_first() -> None:
    with pytest.raises(AssertionError, match="; 1 was the first to differ"):
        assert_repeatable(nn.Sequential(nn.Linear(4, 4), Counting(), nn.Linear(4, 2)), batch())


def test_samples_are_independent() -> None:
    assert_batch_independent(Net(), batch())
    assert_batch_independent(Net(), [batch()])
    assert_batch_independent(bert(), ids())


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Sequential(nn.Linear(4, 4), Centred(), nn.Linear(4, 2)), batch()),
        (nn.Sequential(nn.Linear(4, 4), Positional(), nn.Linear(4, 2)), batch()),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), batch(4, 1, 8, 8)),
    ],
)
def test_a_sample_that_depends_on_others_is_named_and_so_is_the_module(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(
        AssertionError, match=r"sample \d gives otherwise alone, by up to .*; 1 was the first to differ"
    ):
        assert_batch_independent(net, x)


class Pooled(nn.Module):
    """A mean over all places, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        y: Tensor = self.table(input_ids)
        return y.mean(1)


def test_padding_that_counts_is_found() -> None:
    with pytest.raises(AssertionError, match=r"sample 0 gives otherwise with 3 more of padding"):
        assert_batch_independent(Pooled(), ids())


def test_eval_matters_where_a_forgotten_one_would_show() -> None:
    assert_eval_matters(Net(), batch())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Linear(4, 2), "nothing in it depends on the mode"),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)), r"1 \(Dropout\) changed nothing"),
    ],
)
def test_eval_that_does_not_matter_is_told(model: nn.Module, why: str) -> None:
    with pytest.raises(AssertionError, match=f"the same in training mode as in eval mode: {why}"):
        assert_eval_matters(model, batch())


PROBES: dict[str, Callable[..., None]] = {
    "repeatable": assert_repeatable,
    "independent": assert_batch_independent,
    "matters": assert_eval_matters,
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_leaves_no_trace(probe: Callable[..., None]) -> None:
    net = Net()
    net.head.eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    x = batch()
    x_before, drawn, grad = x.clone(), torch.get_rng_state(), torch.is_grad_enabled()
    probe(net, x)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled() is grad
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_takes_a_module(probe: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"is a function; it takes a torch\.nn\.Module"):
        probe(lambda x: x, batch())


@pytest.mark.parametrize("wrong", [torch.ones(1, 4), torch.tensor(1.0), {}, "abc"])
def test_a_batch_has_at_least_two_samples(wrong: Any) -> None:
    with pytest.raises(ValueError, match="it takes tensors with at least two samples"):
        assert_batch_independent(Net(), wrong)


def test_a_tolerance_is_given_whole() -> None:
    with pytest.raises(ValueError, match="give both, or neither"):
        assert_batch_independent(Net(), batch(), rtol=0.1)


class Writing(nn.Module):
    """Counts in a buffer, and gives the same."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        y: Tensor = self.fc(x)
        return y


def test_a_probe_is_guarded() -> None:
    with pytest.raises(HygieneError, match="state-mutated"):
        assert_repeatable(Writing(), batch())
