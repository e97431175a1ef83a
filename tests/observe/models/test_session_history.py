"""Drift of shared models between windows, and the suspects."""

from __future__ import annotations

import gc

import pytest
from torch import nn

from pytest_evalmode.observe.models.session_history import SessionEvent, SessionHistory
from pytest_evalmode.observe.state import snapshot
from pytest_evalmode.trace import Drift
from tests.nets import Net


def seen(net: nn.Module, test: str = "test_old") -> SessionHistory:
    """Return a history in which a test has seen a model."""
    history = SessionHistory()
    history.record_model(net, snapshot.take_snapshot(net), test)
    return history


def drift(history: SessionHistory, net: nn.Module, name: str = "net") -> Drift:
    found = history.find_drift(net, name, snapshot.take_snapshot(net, include_non_persistent=True))
    assert found is not None
    return found


def test_a_model_that_was_never_seen_has_not_drifted() -> None:
    net = Net()
    assert SessionHistory().find_drift(net, "net", snapshot.take_snapshot(net)) is None
    assert seen(Net()).find_drift(net, "net", snapshot.take_snapshot(net)) is None


def test_an_unchanged_model_has_not_drifted() -> None:
    net = Net()
    history = seen(net)
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    history.record_event(SessionEvent("test_reloads", frozenset(["net"])))
    assert history.find_drift(net, "net", snapshot.take_snapshot(net)) is None


def test_drift_names_the_tensors_and_the_test_that_last_saw_them() -> None:
    net = Net()
    history = seen(net)
    history.record_model(net, snapshot.take_snapshot(net), "test_later")
    net.head.bias.data.add_(1)
    found = drift(history, net)
    assert [change.name for change in found.changes] == ["net.head.bias"]
    assert (found.model, found.last_seen_by, found.between) == ("net", "test_later", ())


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("net", ("has it too", "has it", "last", "first")),
        ("net.student", ("has it too", "has it", "last", "first")),
        ("net['a']", ("has it too", "has it", "last", "first")),
        ("other", ("last", "has it too", "has it", "first")),
    ],
)
def test_events_that_used_the_model_come_first_then_the_most_recent(name: str, between: tuple[str, ...]) -> None:
    net = Net()
    history = seen(net)
    for what, fixtures in (("first", []), ("has it", ["net"]), ("has it too", ["x", "net"]), ("last", ["network"])):
        history.record_event(SessionEvent(what, frozenset(fixtures)))
    net.head.bias.data.add_(1)
    assert drift(history, net, name).between == between


def test_tests_come_before_fixtures_that_did_not_use_the_model() -> None:
    net = Net()
    history = seen(net)
    for what, fixtures, is_test in (("has it", ["net"], False), ("test", ["x"], True), ("has not", ["x"], False)):
        history.record_event(SessionEvent(what, frozenset(fixtures), is_test))
    net.head.bias.data.add_(1)
    assert drift(history, net).between == ("has it", "test", "has not")


@pytest.mark.parametrize(("others", "between"), [(["test"], ("has it", "test")), ([], ("has it",))])
def test_a_fixture_of_a_plugin_is_a_suspect_only_if_it_used_the_model(
    others: list[str], between: tuple[str, ...]
) -> None:
    net = Net()
    history = seen(net)
    for what in others:
        history.record_event(SessionEvent(what, frozenset()))
    for what, names in (("has it", ["net"]), ("has not", ["x"])):
        history.record_event(SessionEvent(what, frozenset(names), is_test=False, is_from_plugin=True))
    net.head.bias.data.add_(1)
    assert drift(history, net).between == between


def test_a_fixture_of_a_plugin_is_a_suspect_if_nothing_else_ran() -> None:
    net = Net()
    history = seen(net)
    history.record_event(SessionEvent("of a plugin", frozenset(), is_test=False, is_from_plugin=True))
    net.head.bias.data.add_(1)
    assert drift(history, net).between == ("of a plugin",)


def test_events_before_the_model_was_seen_are_not_suspects() -> None:
    net, other = Net(), Net()
    history = seen(other)
    history.record_event(SessionEvent("test_before", frozenset(["net"])))
    history.record_model(net, snapshot.take_snapshot(net), "test_old")
    history.record_event(SessionEvent("test_after", frozenset(["net"])))
    net.head.bias.data.add_(1)
    assert drift(history, net).between == ("test_after",)


def test_a_test_that_ran_twice_is_listed_once() -> None:
    net = Net()
    history = seen(net)
    for _ in range(2):
        history.record_event(SessionEvent("test_rerun", frozenset(["net"])))
    net.head.bias.data.add_(1)
    assert drift(history, net).between == ("test_rerun",)


def test_events_are_not_recorded_before_a_model_is_seen() -> None:
    history = SessionHistory()
    history.record_event(SessionEvent("test_first", frozenset([])))
    assert history.events == []


def test_a_dead_model_is_forgotten() -> None:
    net = Net()
    history = seen(net)
    del net
    gc.collect()
    history.record_event(SessionEvent("test_after", frozenset([])))
    assert history.events == []


def test_two_models_have_separate_histories() -> None:
    nets = Net(), Net()
    history = seen(nets[0], "test_a")
    history.record_model(nets[1], snapshot.take_snapshot(nets[1]), "test_b")
    nets[1].head.bias.data.add_(1)
    assert history.find_drift(nets[0], "net", snapshot.take_snapshot(nets[0])) is None
    assert drift(history, nets[1]).last_seen_by == "test_b"
