from __future__ import annotations

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules.exemptions import remove_exempted
from tests.rules.facts import call, calls, changed, changes, observed

# A glob, and whether it names `bn1.running_mean` (`layer1.bn1`) of the model called `model`.
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


@pytest.mark.parametrize(("glob", "excused"), TENSOR_GLOBS.items())
def test_what_may_change(glob: str, excused: bool) -> None:
    trace = changes(changed("bn1.running_mean"))
    assert remove_exempted(trace, Policy(mutable=(glob,))).changes == (() if excused else trace.changes)


@pytest.mark.parametrize(("glob", "excused"), MODULE_GLOBS.items())
def test_what_may_train(glob: str, excused: bool) -> None:
    trace = calls(call(training=(observed("layer1.bn1", "BatchNorm2d"),)))
    (ran,) = remove_exempted(trace, Policy(train=(glob,))).calls
    assert ran.training == (() if excused else trace.calls[0].training)


@pytest.mark.parametrize(("glob", "excused"), {"model": True, "*": True, "Net": False, "model.*": False}.items())
def test_the_model_itself_is_named_as_it_is_called(glob: str, excused: bool) -> None:
    (ran,) = remove_exempted(calls(call(training=(observed("", "Net"),))), Policy(train=(glob,))).calls
    assert (not ran.training) == excused


@pytest.mark.parametrize("glob", ["blocks[0].*", "model.blocks[0].w", "blocks[[]0].w"])
def test_brackets_may_be_a_part_of_the_name(glob: str) -> None:
    trace = changes(changed("blocks[0].w"), changed("blocks[1].w"))
    assert [c.path for c in remove_exempted(trace, Policy(mutable=(glob,))).changes] == ["blocks[1].w"]


def test_any_of_several_globs_will_do() -> None:
    trace = changes(changed("a.w"), changed("b.w"), changed("c.w"))
    assert [c.path for c in remove_exempted(trace, Policy(mutable=("a.*", "model.b.*"))).changes] == ["c.w"]


def test_only_what_is_declared_is_excused() -> None:
    ran = call(
        training=(observed("drop", "Dropout"), observed("bn", "BatchNorm1d")),
        autograd=observed("", "Net"),
        batch_stats=(observed("drop", "Dropout"),),
        draws=(observed("drop", "Dropout"),),
    )
    (left,) = remove_exempted(calls(ran), Policy(train=("drop",), mutable=("*",))).calls
    assert [f.module.path for f in left.training] == ["bn"]
    assert (left.autograd, left.batch_stats, left.draws) == (ran.autograd, ran.batch_stats, ran.draws)


def test_train_excuses_no_change_and_mutable_no_training() -> None:
    trace = changes(changed("bn.running_mean"))
    assert remove_exempted(trace, Policy(train=("*",))).changes
    (ran,) = remove_exempted(calls(call(training=(observed("bn", "BatchNorm1d"),))), Policy(mutable=("*",))).calls
    assert ran.training


def test_nothing_declared_leaves_all_as_it_is() -> None:
    trace = calls(call(training=(observed("bn", "BatchNorm1d"),)))
    assert remove_exempted(trace, Policy()) == trace
