"""Modules that `paused(frozen=...)` names: they must not change even in code that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode import Guard
from pytest_evalmode.policy import PolicyError
from tests.nets import only, watching

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Probe(nn.Module):
    """A linear probe: a frozen backbone and a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))


def train(model: Probe, *, freeze: bool, parameters: Any = None) -> None:
    model.train()
    if freeze:
        model.backbone.eval()
    optimizer = torch.optim.SGD(parameters or model.head.parameters(), lr=0.1, weight_decay=0.1)
    model(X).sum().backward()
    optimizer.step()
    model.eval()


def run(frozen: Any, *, freeze: bool = False, watch: bool = False) -> Guard:
    model = Probe().eval()
    with watching() as g:
        if watch:
            g.watch(model, "net")
        with g.paused(frozen=frozen):
            train(model, freeze=freeze)
        with torch.no_grad():
            model(X)
    return g


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize("frozen", ["backbone", ["head.bias.none", "back*"], "*.1", "backbone.1"])
def test_batch_norms_of_a_frozen_backbone_are_reported(frozen: Any, watch: bool) -> None:
    if isinstance(frozen, list):
        frozen = frozen[1:]
    violation = only(run(frozen, watch=watch), "state-mutated")
    model = "net" if watch else "Probe"
    assert set(violation.subjects) == {
        f"{model}.backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert "call eval() on that module" in violation.remedy
    assert violation.at is not None
    assert violation.at.source == "with g.paused(frozen=frozen):"


@pytest.mark.parametrize("watch", [False, True])
def test_a_backbone_that_stays_in_eval_mode_is_clean(watch: bool) -> None:
    assert run("backbone", freeze=True, watch=watch).violations == []


def test_a_pause_without_frozen_modules_allows_everything() -> None:
    assert run(()).violations == []


def test_an_optimizer_of_all_parameters_is_reported() -> None:
    model = Probe().eval()
    parameters = [*model.requires_grad_(True).parameters()]
    with watching() as g, g.paused(frozen="backbone"):
        train(model, freeze=True, parameters=parameters)
    assert "Probe.backbone.0.weight" in only(g, "state-mutated").subjects


def test_the_name_of_the_model_freezes_all_of_it() -> None:
    assert "net.head.weight" in only(run("net", watch=True), "state-mutated").subjects


def test_a_change_after_the_pause_is_reported_as_before() -> None:
    model = Probe().eval()
    with watching(model) as g:
        with g.paused(frozen="backbone"):
            train(model, freeze=True)
        model.head.bias.data.add_(1)
    violation = only(g, "state-mutated")
    assert violation.subjects == ("Probe.head.bias",)
    assert "frozen" not in violation.remedy


def test_changes_before_the_pause_are_not_its_own() -> None:
    model = Probe().eval()
    with watching(model) as g:
        model.backbone[1].running_mean.add_(1)  # type: ignore[operator]
        with g.paused(frozen="backbone"):
            pass
    assert "frozen" not in only(g, "state-mutated").remedy


@pytest.mark.parametrize("frozen", [3, [""], "backbon"])
def test_a_wrong_name_is_an_error(frozen: Any) -> None:
    with pytest.raises(PolicyError, match="frozen"):
        run(frozen)


def test_only_modules_are_suggested() -> None:
    with pytest.raises(PolicyError, match=r"\(choose from backbone, backbone\.0, backbone\.1, head\)"):
        run("nothing_like_it")


def test_an_exception_in_the_pause_comes_first() -> None:
    def fail(g: Guard) -> None:
        with g.paused(frozen="no_such_module"):
            raise KeyError("own")

    check: Callable[[Guard], None] = fail
    with pytest.raises(KeyError, match="own"), watching() as g:
        check(g)
