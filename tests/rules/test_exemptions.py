from __future__ import annotations

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules.exemptions import remove_exempted
from tests.rules.facts import call, calls, changed, changes, observed

# Globs, and whether each matches `bn1.running_mean` (or `layer1.bn1`) of the model named `model`.
TENSOR_GLOBS = {
    "bn1.running_mean": True,
    "bn1.*": True,
    "model.bn1.*": True,
    "*.running_mean": True,
    "*": True,
    "bn?.running_*": True,
    "bn[12].running_mean": True,
    "model": False,
    "bn1": False,
    "bn": False,
    "running_mean": False,
    "bn2.*": False,
    "BN1.*": False,
    "other.bn1.*": False,
}
MODULE_GLOBS = {
    "layer1.bn1": True,
    "model.layer1.bn1": True,
    "layer1.*": True,
    "*bn*": True,
    "*": True,
    "bn1": False,
    "layer1": False,
    "layer1.bn": False,
    "other.*": False,
}


@pytest.mark.parametrize(("glob", "is_exempted"), TENSOR_GLOBS.items())
def test_mutable_exempts_matching_tensors(glob: str, is_exempted: bool) -> None:
    trace = changes(changed("bn1.running_mean"))
    assert remove_exempted(trace, Policy(mutable=(glob,))).changes == (() if is_exempted else trace.changes)


@pytest.mark.parametrize(("glob", "is_exempted"), MODULE_GLOBS.items())
def test_train_exempts_matching_modules(glob: str, is_exempted: bool) -> None:
    trace = calls(call(training=(observed("layer1.bn1", "BatchNorm2d"),)))
    (ran,) = remove_exempted(trace, Policy(train=(glob,))).calls
    assert ran.training == (() if is_exempted else trace.calls[0].training)


@pytest.mark.parametrize(("glob", "is_exempted"), {"model": True, "*": True, "Net": False, "model.*": False}.items())
def test_a_glob_matches_the_model_itself_by_its_name(glob: str, is_exempted: bool) -> None:
    (ran,) = remove_exempted(calls(call(training=(observed("", "Net"),))), Policy(train=(glob,))).calls
    assert (not ran.training) == is_exempted


@pytest.mark.parametrize("glob", ["blocks[0].*", "model.blocks[0].w", "blocks[[]0].w"])
def test_brackets_may_be_part_of_a_name(glob: str) -> None:
    trace = changes(changed("blocks[0].w"), changed("blocks[1].w"))
    assert [c.path for c in remove_exempted(trace, Policy(mutable=(glob,))).changes] == ["blocks[1].w"]


def test_one_of_several_globs_has_to_match() -> None:
    trace = changes(changed("a.w"), changed("b.w"), changed("c.w"))
    assert [c.path for c in remove_exempted(trace, Policy(mutable=("a.*", "model.b.*"))).changes] == ["c.w"]


def test_only_the_declared_kind_is_exempted() -> None:
    ran = call(
        training=(observed("drop", "Dropout"), observed("bn", "BatchNorm1d")),
        autograd=observed("", "Net"),
        batch_stats=(observed("drop", "Dropout"),),
        draws=(observed("drop", "Dropout"),),
    )
    (left,) = remove_exempted(calls(ran), Policy(train=("drop",), mutable=("*",))).calls
    assert [f.module.path for f in left.training] == ["bn"]
    assert (left.autograd, left.batch_stats, left.draws) == (ran.autograd, ran.batch_stats, ran.draws)


def test_train_exempts_no_change_and_mutable_no_training() -> None:
    trace = changes(changed("bn.running_mean"))
    assert remove_exempted(trace, Policy(train=("*",))).changes
    (ran,) = remove_exempted(calls(call(training=(observed("bn", "BatchNorm1d"),))), Policy(mutable=("*",))).calls
    assert ran.training


def test_an_empty_policy_exempts_nothing() -> None:
    trace = calls(call(training=(observed("bn", "BatchNorm1d"),)))
    assert remove_exempted(trace, Policy()) == trace
