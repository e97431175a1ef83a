"""Watched models: their lifetime, their submodels, and the moment from which they are compared."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.nets import Net, batch, only, rules, watching


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def no_collector() -> Iterator[None]:
    """Turn the garbage collector off: objects are freed only when their last reference is dropped."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def scale(module: nn.Module) -> None:
    """Change every parameter."""
    for parameter in module.parameters():
        parameter.mul_(2)


# --- nothing is kept alive


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "seen"])
def test_a_dropped_model_is_freed_at_once_and_compared(watched: bool) -> None:
    with no_collector(), watching() as g:
        model = Net().eval()
        if watched:
            g.watch(model, "model")
        model(batch())
        gone, weight = weakref.ref(model), weakref.ref(model.head.weight)
        scale(model)
        del model
        assert gone() is None
        assert weight() is None
    assert "head.weight" in " ".join(only(g, "state-mutated").subjects)


def test_a_dropped_model_that_did_not_change_is_clean() -> None:
    with no_collector(), watching() as g:
        model = Net().eval()
        model(batch())
        gone = weakref.ref(model)
        del model
        assert gone() is None
    assert not rules(g)


def test_models_that_reuse_an_address_are_different_models() -> None:
    with watching() as g:
        for _ in range(20):
            Net().eval()(batch())
    assert not rules(g)
    assert len(g.window.models) == 20


def test_tensors_that_outlive_their_model_may_change() -> None:
    """The guard does not watch the weights once their model is dead."""
    with watching() as g:
        model = nn.Linear(4, 4).eval()
        model(batch())
        weight = model.weight
        del model
        gc.collect()
        weight.mul_(2)
    assert not rules(g)


def test_nothing_outlives_the_window() -> None:
    with no_collector():
        model = Net().eval()
        gone, weight = weakref.ref(model), weakref.ref(model.head.weight)
        with watching(model) as g:
            model(batch())
            scale(model)
        del model
        assert gone() is None
        assert weight() is None
    assert rules(g) == {"state-mutated"}


def test_a_model_in_a_reference_cycle_is_left_to_the_garbage_collector() -> None:
    with watching() as g:
        model = Net().eval()
        vars(model)["me"] = model
        model(batch())
        scale(model)
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
    assert rules(g) == {"state-mutated"}


# --- the start of the comparison


def test_changes_before_the_first_forward_count_only_for_watched_models() -> None:
    with watching() as g:
        seen, watched = nn.Linear(4, 4).eval(), g.watch(nn.Linear(4, 4).eval(), "watched")
        for model in (seen, watched):
            scale(model)
            model(batch())
    assert only(g, "state-mutated").model == "watched"


def test_a_watched_model_need_not_run() -> None:
    model = Net().eval()
    with watching(model) as g:
        scale(model)
    violation = only(g, "state-mutated")
    assert violation.at is None


def test_a_change_after_the_last_forward_is_reported() -> None:
    with watching() as g:
        model = Net().eval()
        model(batch())
        scale(model)
    assert only(g, "state-mutated").at


def test_watching_a_model_again_keeps_its_baseline() -> None:
    model = Net().eval()
    with watching(model) as g:
        scale(model)
        assert g.watch(model) is model
    assert rules(g) == {"state-mutated"}


# --- tied weights, lazy models, submodels


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.embed(tokens))
        return out


def test_a_change_of_tied_weights_is_reported_under_both_names() -> None:
    with watching() as g:
        model = Tied().eval()
        model(torch.arange(6))
        model.out.weight.add_(1)
    assert only(g, "state-mutated").subjects == ("Tied.embed.weight", "Tied.out.weight")


def test_untying_equal_weights_is_clean() -> None:
    with watching() as g:
        model = Tied().eval()
        model(torch.arange(6))
        model.out.weight = nn.Parameter(model.embed.weight.clone())
    assert not rules(g)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "seen"])
def test_a_lazy_model_may_get_its_shape(watched: bool) -> None:
    model = lazy()
    with watching(*[model] if watched else []) as g:
        model(batch())
        model(batch())
    assert not rules(g)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "2.bias"])
def test_a_lazy_model_is_watched_once_it_has_its_shape(name: str) -> None:
    with watching() as g:
        model = lazy()
        model(batch())
        model.state_dict()[name].add_(1)
    assert only(g, "state-mutated").subjects == (f"Sequential.{name}",)


def test_loading_a_lazy_model_changes_only_initialized_tensors() -> None:
    with watching() as g:
        model = g.watch(lazy())
        model.load_state_dict(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).state_dict())
        model(batch())
    assert only(g, "state-mutated").subjects == ("Sequential.2.weight", "Sequential.2.bias")


def test_a_submodule_that_ran_first_is_named_after_the_largest_model() -> None:
    inner = nn.Linear(4, 4)
    middle = nn.Sequential(inner)
    whole = nn.Sequential(nn.Linear(4, 4), middle).eval()
    with watching() as g:
        inner(batch())
        middle(batch())
        whole(batch())
        inner.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Sequential.1.0.bias",)


def encoder_and_whole() -> tuple[nn.Linear, nn.Sequential]:
    encoder = nn.Linear(4, 4)
    return encoder, nn.Sequential(encoder, nn.Linear(4, 2)).eval()


def test_a_submodule_that_ran_first_belongs_to_the_model_that_runs_later() -> None:
    with watching() as g:
        encoder, whole = encoder_and_whole()
        encoder(batch())
        whole(batch())
    assert not rules(g)
    (model,) = g.window.models
    assert (model.name, model.type, model.tensors, model.forwards) == ("Sequential", "Sequential", 4, 2)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_submodule_that_ran_first_is_compared_with_its_first_forward(when: str) -> None:
    with watching() as g:
        encoder, whole = encoder_and_whole()
        encoder(batch())
        if when == "before":
            encoder.bias.add_(1)
        whole(batch())
        if when == "after":
            encoder.bias.add_(1)
    (subject,) = only(g, "state-mutated").subjects
    assert subject.endswith(".0.bias")


def test_the_rest_of_a_model_is_watched_too_if_a_submodule_ran_first() -> None:
    with watching() as g:
        encoder, whole = encoder_and_whole()
        encoder(batch())
        whole(batch())
        whole.get_parameter("1.bias").add_(1)
    violation = only(g, "state-mutated")
    assert [subject.rpartition("Sequential")[2] for subject in violation.subjects] == [".1.bias"]
    assert "max |Δ| 1" in violation.finding


def test_a_submodule_of_a_watched_model_is_reported_by_its_path_there() -> None:
    encoder, whole = encoder_and_whole()
    with watching(whole) as g:
        encoder(batch())
        encoder.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Sequential.0.bias",)
    assert [model.name for model in g.window.models] == ["Sequential"]


def test_a_submodule_that_two_models_share_is_reported_once() -> None:
    shared = nn.Linear(4, 4)
    with watching() as g:
        one, other = nn.Sequential(shared, nn.ReLU()).eval(), nn.Sequential(shared, nn.Tanh()).eval()
        one(batch())
        other(batch())
        shared.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Sequential.0.bias",)


def test_a_shared_submodule_is_reported_by_the_model_that_is_alive() -> None:
    shared = nn.Linear(4, 4)
    other = nn.Sequential(nn.ReLU(), shared).eval()
    with watching() as g:
        one = nn.Sequential(shared).eval()
        one(batch())
        other(batch())
        del one
        gc.collect()
        shared.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Sequential#2.1.bias",)


def test_tensors_of_a_module_added_to_a_watched_model_are_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    with watching(model) as g:
        model(batch())
        model.append(nn.Linear(4, 2).eval())
        model(batch())
    assert only(g, "state-mutated").subjects == ("Sequential.1.weight", "Sequential.1.bias")


def test_the_name_of_a_submodel_is_free_for_its_parent() -> None:
    with watching() as g:
        part = nn.Sequential(nn.Linear(4, 4)).eval()
        whole = nn.Sequential(part).eval()
        part(batch())
        whole(batch())
    assert [model.name for model in g.window.models] == ["Sequential"]


# --- functional_call


def test_functional_call_is_not_a_change() -> None:
    with watching() as g:
        model = Net().eval()
        model(batch())
        functional_call(model, {name: p * 2 for name, p in model.named_parameters()}, (batch(),))
        model(batch())
    assert not rules(g)


def test_functional_call_as_the_first_forward_is_not_a_change() -> None:
    with watching() as g:
        model = Net().eval()
        functional_call(model, {name: p * 2 for name, p in model.named_parameters()}, (batch(),))
        model(batch())
    assert not rules(g)


def test_a_change_after_a_functional_call_is_reported() -> None:
    with watching() as g:
        model = Net().eval()
        functional_call(model, {"head.bias": torch.ones(2)}, (batch(),))
        model(batch())
        model.head.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Net.head.bias",)


# --- names


def test_models_of_one_type_are_numbered() -> None:
    with watching() as g:
        models = [Net().eval() for _ in range(3)]
        for model in models:
            model(batch())
            scale(model)
    assert [v.model for v in g.violations] == ["Net", "Net#2", "Net#3"]


def test_the_first_name_stays() -> None:
    with watching() as g:
        model = g.watch(g.watch(Net().eval(), "teacher"), "student")
        scale(model)
    assert only(g, "state-mutated").model == "teacher"


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_a_wrapper_and_what_it_wraps_are_one_model(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = Net().eval()
    wrapped = wrap(net)
    with watching(wrapped) as g:
        net(batch())
        wrapped(batch())
        net.head.bias.add_(1)
    assert only(g, "state-mutated").subjects == ("Net.head.bias",)
    assert [model.name for model in g.window.models] == ["Net"]


# --- counts in the report


def test_the_report_counts_forwards_tensors_and_bytes() -> None:
    with watching() as g:
        net = Net().eval()
        for _ in range(3):
            net(batch())
        nn.CrossEntropyLoss(weight=torch.ones(2))(net(batch()), torch.zeros(8, dtype=torch.long))
    (model,) = g.window.models
    assert (model.name, model.type, model.forwards) == ("Net", "Net", 4)
    assert model.tensors == len(net.state_dict())
    assert model.bytes == sum(t.nbytes for t in net.state_dict().values())


def test_a_shared_submodule_is_reported_by_the_other_model_if_the_first_was_not_read() -> None:
    shared = nn.Linear(4, 4)
    one, other = nn.Sequential(shared).eval(), nn.Sequential(shared, nn.ReLU()).eval()
    with watching() as g:
        functional_call(one, {name: value.clone() for name, value in one.state_dict().items()}, (batch(),))
        other(batch())
        shared.bias.add_(1)
    assert only(g, "state-mutated").subjects[0].endswith("0.bias")


def test_a_submodule_at_the_address_of_a_dead_one_is_watched() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with watching() as g:
        model[0](batch())
        model(batch())
        for _ in range(20):  # until one has the address of the dead one
            del model[0]
            model.insert(0, nn.Linear(4, 4).eval())
            model(batch())
    assert "state-mutated" in rules(g)


def test_flags_of_a_submodule_that_ran_first_belong_to_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with watching(strict=True) as g:
        model[0](batch())
        g.window.watch_fixture_value(model, "model", shared=True)
        model[0].requires_grad_(False)
    (violation,) = (v for v in g.violations if v.rule == "model-leaked")
    assert len(violation.subjects) == 2
