"""`guard()`, as scripts and fixtures use it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import pytest_evalmode
from pytest_evalmode import Guard, GuardError, HygieneError, PolicyError, guard
from tests.nets import Net, batch, only, rules, watching


def forget(model: nn.Module | None = None) -> nn.Module:
    """Run a model in training mode."""
    model = model or Net()
    with torch.no_grad():
        model(batch())
    return model


def run(model: nn.Module | None = None) -> nn.Module:
    """Run a model in eval mode."""
    model = (model or Net()).eval()
    with torch.no_grad():
        model(batch())
    return model


# --- violations


def test_a_clean_inference_passes() -> None:
    with guard() as g:
        run()
        g.check()
    assert g.violations == []


def test_an_unclean_inference_raises() -> None:
    headline = r"^train-mode: Net ran once in training mode \(\+1 more\)\n"
    with pytest.raises(HygieneError, match=headline) as caught, guard():
        forget()
    assert isinstance(caught.value, AssertionError)
    assert [violation.rule for violation in caught.value.violations] == ["train-mode", "state-mutated"]


def test_the_message_names_the_line_and_the_fix() -> None:
    with watching() as g:
        forget(g.watch(Net(), "net"))
    message = str(g.reporter.make_error(g.violations))
    assert "net.bn (BatchNorm1d) and 1 more of 5 modules were in training mode" in message
    assert "test_guards.py" in message
    assert "model(batch())" in message
    assert "fix: call net.eval() before the first forward" in message
    assert "intended?" not in message


def test_the_suggested_exemption_works() -> None:
    with guard(train=["*"], mutable=["bn.*"]):
        forget()


def test_check_raises_at_once_and_so_does_the_exit() -> None:
    with watching() as g:
        forget()
        with pytest.raises(HygieneError):
            g.check()
        run()
    with pytest.raises(HygieneError):
        g.check()


def test_violations_accumulate_while_the_window_is_open() -> None:
    with watching() as g:
        assert g.violations == []
        model = run()
        assert g.violations == []
        forget(model.train())
        assert rules(g) == {"train-mode", "state-mutated"}
        forget(model)
        assert {v.rule: v.count for v in g.violations}["train-mode"] == 2
    assert len(g.violations) == 2


def test_reading_violations_has_no_side_effects() -> None:
    model = Net().eval()
    with watching(model) as g:
        model.head.bias.data.add_(1)
        assert g.violations == g.violations
        model.head.bias.data.sub_(1)
    assert len(g.violations) == 1


def test_an_exception_in_the_block_propagates_with_the_violations_as_a_note() -> None:
    def block() -> None:
        with guard():
            forget()
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        block()
    assert caught.value.args == ("mine",)
    (note,) = caught.value.__notes__
    assert "train-mode: Net ran once in training mode" in note


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_a_clean_block_propagates_unchanged(error: type[BaseException]) -> None:
    def block() -> None:
        with guard():
            run()
            raise error

    with pytest.raises(error) as caught:
        block()
    assert not hasattr(caught.value, "__notes__")


def test_guard_in_a_coroutine() -> None:
    async def serve(model: nn.Module) -> None:
        with guard():
            await asyncio.sleep(0)
            forget(model)

    with pytest.raises(HygieneError, match="train-mode"):
        asyncio.run(serve(Net()))


def test_a_failure_of_the_guard_raises_guard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("in the guard")

    monkeypatch.setattr("pytest_evalmode.observe.state.generators.state", broken)
    with pytest.raises(GuardError, match=r"internal error: ZeroDivisionError.*in the guard") as caught, guard():
        output = Net().eval()(batch())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert output.shape == (8, 2)


def test_a_failure_of_the_guard_does_not_hide_an_exception_in_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError

    def block() -> None:
        with guard():
            run()
            raise KeyError

    monkeypatch.setattr("pytest_evalmode.observe.state.generators.state", broken)
    with pytest.raises(KeyError):
        block()


# --- models and their names


def test_models_have_the_given_name_or_that_of_their_type() -> None:
    with watching(Net()) as g:
        assert g.watch(Net(), name="teacher").__class__ is Net
        g.watch(Net())
    assert [model.name for model in g.window.models] == ["Net", "teacher", "Net#2"]


@pytest.mark.parametrize("shared", [True, False])
def test_models_in_a_fixture_value_are_named_after_the_fixture(shared: bool) -> None:
    model = Net().eval()
    with watching() as g:
        g.window.watch_fixture_value({"nets": [model]}, "fx", shared=shared)
        model.head.bias.data.add_(1)
        assert rules(g) == ({"state-mutated"} if shared else set())
        run(model)
    assert [facts.name for facts in g.window.models] == ["fx['nets'][0]"]


@pytest.mark.parametrize("model", [None, "model", Net, torch.ones(1), [Net()], lambda x: x])
def test_watch_accepts_modules_only(model: Any) -> None:
    with pytest.raises(TypeError, match=r"watch\(model\): expected a torch\.nn\.Module, got "), guard() as g:
        g.watch(model)
    with pytest.raises(TypeError, match=r"guard\(\*models\): expected a torch\.nn\.Module, got "), guard(model):
        pass


def test_seconds_grow() -> None:
    with guard() as g:
        before = g.window.seconds
        run()
    assert g.window.seconds > before >= 0


# --- arguments


@pytest.mark.parametrize("argument", ["train-mode", ["train-mode"], ("train-mode", "grad-mode"), {"train-mode"}])
def test_allow(argument: Any) -> None:
    with guard(allow=argument, mutable="*"):
        forget()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"train-mode", "state-mutated"}),
        ({"allow": "train-mode"}, {"state-mutated"}),
        ({"allow": "state-mutated"}, {"train-mode"}),
        ({"train": "*"}, {"state-mutated"}),
        ({"train": ["bn"]}, {"train-mode", "state-mutated"}),
        ({"mutable": "bn.*"}, {"train-mode"}),
        ({"mutable": "Net.bn.*"}, {"train-mode"}),
        ({"mutable": "bn.running_*"}, {"train-mode", "state-mutated"}),
        ({"train": "Net*", "mutable": ["*.running_*", "*.num_batches_tracked"]}, set()),
        ({"allow": ["train-mode", "state-mutated"]}, set()),
    ],
)
def test_exemptions(arguments: dict[str, Any], expected: set[str]) -> None:
    with watching(**arguments) as g:
        forget()
    assert rules(g) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"allow": "train-mod"},
            r"guard\(\): unknown rule in allow='train-mod' \(did you mean 'train-mode'\? choose from ",
        ),
        ({"allow": ["grad-mode", "batchstats"]}, r"unknown rule in allow='batchstats' \(did you mean 'batch-stats'\?"),
        ({"allow": "xyz"}, r"unknown rule in allow='xyz' \(choose from train-mode, "),
        ({"allow": 3}, r"allow must be a non-empty string or a sequence of them, not 3"),
        ({"allow": [None]}, r"allow must be .*, not \[None\]"),
        ({"train": [""]}, r"train must be .*, not \[''\]"),
        ({"train": True}, r"train must be .*, not True"),
        ({"mutable": ["a", 1]}, r"mutable must be .*, not \['a', 1\]"),
        ({"mutable": None}, r"mutable must be .*, not None"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message), guard(**arguments):
        pass
    assert issubclass(PolicyError, ValueError)


def test_an_invalid_argument_leaves_torch_unpatched() -> None:
    original = nn.Module.__call__
    with pytest.raises(PolicyError), guard(allow="no-rule"):
        pass
    with pytest.raises(TypeError), guard("no model"):  # type: ignore[arg-type]
        pass
    assert nn.Module.__call__ is original


# --- paused and allow


def test_paused() -> None:
    model = Net().eval()
    with guard(model) as g:
        run(model)
        with g.paused():
            forget(model.train())
            model(batch()).sum().backward()
        run(model)


def test_violations_before_a_pause_are_reported() -> None:
    model = Net().eval()
    with watching(model) as g:
        model.head.bias.data.add_(1)
        with g.paused():
            model.head.weight.data.add_(1)
        model.body.bias.data.add_(1)
    assert only(g, "state-mutated").subjects == ("Net.head.bias", "Net.body.bias")


def test_a_pause_ends_when_an_exception_leaves_it() -> None:
    with watching() as g:
        with pytest.raises(KeyError), g.paused():
            raise KeyError
        forget()
    assert "train-mode" in rules(g)


def test_a_model_that_first_runs_in_a_pause_is_not_reported() -> None:
    with watching() as g:
        with g.paused():
            model = forget()
        run(model)
    assert not rules(g)


def test_allow_applies_to_a_part_of_the_window() -> None:
    model = Net().eval()
    with watching(model) as g:
        with g.allow("train-mode", mutable=["bn.*"], reason="recalibration"):
            forget(model.train())
        run(model)
    assert not rules(g)
    assert g.window.combined_policy.reasons == ("recalibration",)
    with watching(model) as g:
        with g.allow("train-mode", mutable=["bn.*"]):
            forget(model.train())
        forget(model)
    assert rules(g) == {"train-mode", "state-mutated"}
    assert {v.rule: v.count for v in g.violations}["train-mode"] == 1


def test_allow_adds_to_the_exemptions_of_the_guard() -> None:
    with guard(mutable="bn.*") as g, g.allow(train="*"):
        forget()


def test_allowed_changes_become_the_new_baseline() -> None:
    model = Net().eval()
    with watching(model) as g:
        with g.allow(mutable="head.bias"):
            model.head.bias.data.add_(1)
        run(model)
    assert not rules(g)


def test_nested_paused_and_allow() -> None:
    model = Net()
    with watching(model) as g:
        with g.paused():
            with g.allow("grad-mode"):
                forget(model)
            with g.paused():
                forget(model)
            forget(model)
        with g.allow("train-mode"):
            with g.paused():
                forget(model)
            with g.allow(mutable="*"):
                forget(model)
    assert not rules(g)


@pytest.mark.parametrize("rule", ["train-mod", "", "*"])
def test_allow_rejects_an_unknown_rule(rule: str) -> None:
    with pytest.raises(PolicyError, match=r"evalmode\.allow\(\)"), guard() as g, g.allow(rule):
        pass


def test_paused_and_allow_do_nothing_after_the_window() -> None:
    with guard() as g:
        run()
    with g.paused(), g.allow("train-mode"):
        forget()
    assert g.violations == []


# --- public names


@pytest.mark.parametrize("name", pytest_evalmode.__all__)
def test_public_names(name: str) -> None:
    assert getattr(pytest_evalmode, name).__name__ == name


def test_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'guards_'"):
        pytest_evalmode.guards_  # noqa: B018


@pytest.mark.parametrize("block", [nullcontext, guard])
def test_many_windows_leak_no_objects(block: Callable[[], Any]) -> None:
    def objects() -> int:
        gc.collect()
        return sum(issubclass(type(o), Guard | nn.Module) for o in gc.get_objects())

    run()
    before = objects()
    for _ in range(5):
        with block():
            run()
    assert objects() == before


def test_a_guard_cannot_be_entered_twice() -> None:
    used = guard()
    with used:
        pass
    with pytest.raises(RuntimeError, match="a second time"), used:
        pass


@pytest.mark.parametrize("context", ["paused", "allow"])
def test_a_context_that_is_left_after_the_window_starts_nothing(context: str) -> None:
    with ExitStack() as stack, guard() as g:
        stack.enter_context(getattr(g, context)())
    assert not hasattr(nn.Module.__call__, "__wrapped__")
    assert not rules(g)
