"""Probes detect their fault, name the first difference, pass on look-alikes, and leave the model unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pytest_evalmode import HygieneError, guard
from pytest_evalmode.probes import assert_batch_independent, assert_eval_matters, assert_repeatable
from tests.nets import Net, batch, watching


class Sticky(nn.Module):
    """A module that keeps its first input."""

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
    """A module that behaves differently after an input with a large first value."""

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


class Centered(nn.Module):
    """A module that subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Positional(nn.Module):
    """A module that scales each sample by its position in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, len(x) + 1)[:, None]


def bert() -> BertModel:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return BertModel(config)


def ids() -> dict[str, Tensor]:
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(1, 50, (3, 6)) * mask, "attention_mask": mask}


def test_clean_models_are_repeatable() -> None:
    assert_repeatable(Net(), batch())
    tokens: dict[str, Any] = ids()
    assert_repeatable(bert(), **tokens)


def test_cache_of_other_inputs_is_detected() -> None:
    with pytest.raises(
        AssertionError,
        match=r"the output differs after a run with other inputs.*first module that differs: the model itself",
    ):
        assert_repeatable(Triggered(), torch.arange(40.0).reshape(10, 4))
    assert_repeatable(Sticky(), batch())  # the copy keeps the first input, which is the same in all runs


@pytest.mark.parametrize(("model", "where"), [(Counting(), "the model itself"), (Dropping(), "the model itself")])
def test_different_output_in_a_second_run_is_detected(model: nn.Module, where: str) -> None:
    with pytest.raises(AssertionError, match=f"in a second run: by up to .*; first module that differs: {where}"):
        assert_repeatable(nn.Sequential(model)[0], batch())


def test_message_names_the_first_module_that_differs() -> None:
    with pytest.raises(AssertionError, match="; first module that differs: 1 "):
        assert_repeatable(nn.Sequential(nn.Linear(4, 4), Counting(), nn.Linear(4, 2)), batch())


def test_clean_models_are_batch_independent() -> None:
    assert_batch_independent(Net(), batch())
    assert_batch_independent(Net(), [batch()])
    assert_batch_independent(bert(), ids())


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Sequential(nn.Linear(4, 4), Centered(), nn.Linear(4, 2)), batch()),
        (nn.Sequential(nn.Linear(4, 4), Positional(), nn.Linear(4, 2)), batch()),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), batch(4, 1, 8, 8)),
    ],
)
def test_message_names_the_dependent_sample_and_the_module(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(
        AssertionError,
        match=r"sample \d gives a different output when run alone: by up to .*; first module that differs: 1,",
    ):
        assert_batch_independent(net, x)


class Pooled(nn.Module):
    """A model that averages over all tokens, including the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        y: Tensor = self.table(input_ids)
        return y.mean(1)


def test_output_that_depends_on_padding_is_detected() -> None:
    with pytest.raises(AssertionError, match=r"sample 0 gives a different output with 3 more padding tokens"):
        assert_batch_independent(Pooled(), ids())


def test_eval_matters_for_a_model_with_dropout_and_batch_norm() -> None:
    assert_eval_matters(Net(), batch())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Linear(4, 2), "none of its modules depends on the mode"),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)), "none of its modules depends on the mode"),
        (nn.Sequential(nn.Linear(4, 2), nn.RReLU(0.5, 0.5)), r"1 \(RReLU\) had no effect"),
    ],
)
def test_model_without_effect_of_eval_fails(model: nn.Module, why: str) -> None:
    with pytest.raises(AssertionError, match=f"gives the same output in training mode as in eval mode: {why}"):
        assert_eval_matters(model, batch())


PROBES: dict[str, Callable[..., None]] = {
    "repeatable": assert_repeatable,
    "independent": assert_batch_independent,
    "matters": assert_eval_matters,
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_probe_leaves_model_inputs_and_generators_unchanged(probe: Callable[..., None]) -> None:
    net = Net()
    net.head.eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    x = batch()
    x_before, rng_state, grad = x.clone(), torch.get_rng_state(), torch.is_grad_enabled()
    probe(net, x)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(x, x_before)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert torch.is_grad_enabled() is grad
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
@pytest.mark.parametrize("strict", [False, True])
def test_probe_is_clean_in_a_guarded_test(probe: Callable[..., None], strict: bool) -> None:
    net = Net().eval()
    with guard(net, strict=strict):
        probe(net, batch())


def test_a_forward_in_training_mode_beside_a_probe_is_reported() -> None:
    net = Net()
    with watching(net) as g, torch.no_grad():
        assert_eval_matters(net, batch())
        net(batch())
    (violation,) = (each for each in g.violations if each.rule == "train-mode")
    assert violation.count == 1


@pytest.mark.parametrize("probe", [assert_batch_independent, assert_eval_matters])
def test_probe_requires_a_module(probe: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got function"):
        probe(lambda x: x, batch())


@pytest.mark.parametrize("wrong", [torch.ones(1, 4), torch.tensor(1.0), {}, "abc"])
def test_batch_requires_at_least_two_samples(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected tensors with at least two samples"):
        assert_batch_independent(Net(), wrong)


def test_rtol_requires_atol() -> None:
    with pytest.raises(ValueError, match="pass both rtol and atol, or neither"):
        assert_batch_independent(Net(), batch(), rtol=0.1)


class Writing(nn.Module):
    """A module that counts its forwards in a buffer, without changing its output."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        y: Tensor = self.fc(x)
        return y


def test_probe_guards_the_run() -> None:
    with pytest.raises(HygieneError, match="state-mutated"):
        assert_repeatable(Writing(), batch())
