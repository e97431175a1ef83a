"""Submodules that outlive their model: a wrapper made for one call, an ensemble, a head."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.nets import Net, batch, only, rules, watching


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Ensemble(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.stack([member(x) for member in self.members]).mean(0)


class Drops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x)


def with_softmax(model: nn.Module) -> nn.Module:
    return nn.Sequential(model, nn.Softmax(-1)).eval()


def with_a_head(model: nn.Module) -> nn.Module:
    return nn.Sequential(model, nn.Linear(2, 2)).eval()


def nested(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Identity(), model)).eval()


def ensemble(model: nn.Module) -> nn.Module:
    return Ensemble([model, nn.Linear(4, 2)]).eval()


def parallel(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.DataParallel(model)).eval()


class Tables(nn.Module):
    """Has a method and no forward, once it is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def scaled(self, x: Tensor) -> Tensor:
        return x * self.scale


class Scaled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            self.tables = torch.jit.script(Tables())
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.tables.scaled(self.model(x))
        return scaled


def scripted(model: nn.Module) -> nn.Module:
    return Scaled(model).eval()


WRAPPERS = [with_softmax, with_a_head, nested, ensemble, parallel, scripted]
Wrap = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("calls", [1, 2])
def test_a_write_after_the_wrapper_has_died_is_reported(wrap: Wrap, calls: int) -> None:
    model = Net().eval()
    with watching() as g:
        for _ in range(calls):
            wrap(model)(batch())
        model.head.weight.data.zero_()
    assert only(g, "state-mutated").subjects == ("Net.head.weight",)


@pytest.mark.parametrize("wrap", [nn.Sequential, *WRAPPERS])
@pytest.mark.parametrize("strict", [False, True])
def test_a_lazy_model_that_is_watched_first_runs_in_a_wrapper(wrap: Wrap, *, strict: bool) -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)).eval()
    with watching(model, strict=strict) as g:
        for _ in range(2):
            wrap(model)(batch())
    assert rules(g) == set()


def test_a_draw_of_a_lazy_model_in_a_wrapper_is_reported() -> None:
    model = nn.Sequential(nn.LazyLinear(4), Drops()).eval()
    with watching(model) as g:
        with_softmax(model)(batch())
    assert only(g, "random-forward").subjects == ("Sequential.0.1 (Drops)",)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_write_between_two_wrappers_is_reported(wrap: Wrap) -> None:
    model = Net().eval()
    with watching() as g:
        wrap(model)(batch())
        model.head.weight.data.zero_()
        wrap(model)(batch())
    (subject,) = only(g, "state-mutated").subjects
    assert subject.endswith("head.weight")


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_write_before_the_model_itself_dies_is_reported(wrap: Wrap) -> None:
    model = Net().eval()
    with watching() as g:
        wrap(model)(batch())
        model.bn.weight.add_(1)
        del model
    assert only(g, "state-mutated").subjects == ("Net.bn.weight",)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_without_writes_are_clean(wrap: Wrap) -> None:
    model = Net().eval()
    with watching(strict=True) as g:
        for _ in range(3):
            wrap(model)(batch())
    assert g.violations == []


def test_forwards_of_a_wrapper_count_for_the_wrapped_model() -> None:
    model = Net().eval()
    with watching() as g:
        g.watch(model, "ranker")
        for _ in range(3):
            with_softmax(model)(batch())
    assert [(each.name, each.type, each.forwards) for each in g.window.models] == [("ranker", "Net", 3)]


def test_training_mode_inside_several_wrappers_is_one_violation() -> None:
    model = Net()
    with watching() as g:
        for _ in range(3):
            nn.Sequential(model, nn.Softmax(-1))(batch())
    violations = [violation for violation in g.violations if violation.rule == "train-mode"]
    assert [violation.count for violation in violations] == [3]


def test_a_nested_submodule_survives() -> None:
    head = nn.Linear(4, 2).eval()
    with watching() as g:
        nn.Sequential(nn.Sequential(nn.Linear(4, 4), head)).eval()(batch())
        head.bias.data.add_(1)
    assert only(g, "state-mutated").subjects == ("Linear.bias",)


def test_submodules_without_other_references_die_with_the_model() -> None:
    with watching() as g:
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()(batch())
    assert [(each.name, each.forwards) for each in g.window.models] == [("Sequential", 1)]
