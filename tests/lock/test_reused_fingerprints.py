"""The lock reuses the fingerprints of a guard, unless the model may have changed since."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_evalmode import guard
from pytest_evalmode.lock import model_entry
from pytest_evalmode.observe.state import snapshot
from tests.nets import Net


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each snapshot that is taken."""
    sizes: list[int] = []
    take = snapshot.take_snapshot

    def counted(*args: object, **kwargs: object) -> snapshot.Snapshot:
        taken = take(*args, **kwargs)  # type: ignore[arg-type]
        sizes.append(taken.bytes)
        return taken

    monkeypatch.setattr(snapshot, "take_snapshot", counted)
    return sizes


def test_a_model_that_a_guard_has_read_is_not_read_again(reads: list[int]) -> None:
    net = Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    with guard(net) as g:
        reads.clear()
        fingerprints = g.window.last_fingerprints(net)
        assert fingerprints is not None
        assert model_entry.is_known_to_match(entry, net, fingerprints)
        assert reads == []


@pytest.mark.parametrize("part", ["body", "1", "1.head"])
def test_a_submodule_of_a_watched_model_is_not_read_again(reads: list[int], part: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Net()).eval()
    inner = net.get_submodule("1.body" if part == "body" else part)
    entry = model_entry.build_entry(model_entry.read_contents(inner))
    with guard(net) as g:
        reads.clear()
        fingerprints = g.window.last_fingerprints(inner)
        assert fingerprints is not None
        assert model_entry.is_known_to_match(entry, inner, fingerprints)
        assert reads == []


def test_fingerprints_distinguish_two_models() -> None:
    net, other = Net().eval(), Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(other))
    with guard(net) as g:
        fingerprints = g.window.last_fingerprints(net)
        assert fingerprints is not None
        assert not model_entry.is_known_to_match(entry, net, fingerprints)


def test_fingerprints_are_not_reused_if_changes_are_allowed() -> None:
    net = Net().eval()
    with guard(net, mutable="body.*") as g:
        assert g.window.last_fingerprints(net) is None
    with guard(net, allow="state-mutated") as g:
        assert g.window.last_fingerprints(net) is None
    with guard(net) as g:
        with g.paused():
            assert g.window.last_fingerprints(net) is None
        with g.allow("state-mutated"):
            assert g.window.last_fingerprints(net) is None


def test_fingerprints_after_a_pause_are_new() -> None:
    net = Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    with guard(net) as g:
        with g.paused(), torch.no_grad():
            net.body.weight.add_(1)
        fingerprints = g.window.last_fingerprints(net)
        assert fingerprints is not None
        assert not model_entry.is_known_to_match(entry, net, fingerprints)


def test_a_model_in_another_memory_format_is_read_again_and_matches() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with guard(net) as g:
        fingerprints = g.window.last_fingerprints(net)
        assert fingerprints is not None
        assert not model_entry.is_known_to_match(entry, net, fingerprints)
        assert model_entry.matches(entry, model_entry.read_contents(net))


def test_a_model_that_is_only_locked_has_no_write_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracking the writes of a model costs more than reading it once."""
    tracked: list[object] = []

    def track(tensors: object) -> list[object]:
        tracked.append(tensors)
        return []

    monkeypatch.setattr("pytest_evalmode.observe.state.digest_cache.track", track)
    net = nn.Linear(512, 512)
    model_entry.read_contents(net)
    assert tracked == []
    snapshot.take_snapshot(net)
    assert len(tracked) == 1
