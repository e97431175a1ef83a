"""A model that a guard has read is not read again to be locked; where the guard's reading may be old, it is."""

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
    """The bytes of each reading of a model."""
    found: list[int] = []
    take = snapshot.take_snapshot

    def counted(*args: object, **kwargs: object) -> snapshot.Snapshot:
        read = take(*args, **kwargs)  # type: ignore[arg-type]
        found.append(read.bytes)
        return read

    monkeypatch.setattr(snapshot, "take_snapshot", counted)
    return found


def test_what_a_guard_has_read_is_not_read_again(reads: list[int]) -> None:
    net = Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    with guard(net) as g:
        reads.clear()
        prints = g.last_fingerprints(net)
        assert prints is not None
        assert model_entry.is_known_to_match(entry, prints)
        assert model_entry.matches(entry, model_entry.read_contents(net, prints))
        assert reads == []


@pytest.mark.parametrize("part", ["body", "1", "1.head"])
def test_a_part_of_what_is_watched_is_known_too(reads: list[int], part: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Net()).eval()
    inner = net.get_submodule("1.body" if part == "body" else part)
    entry = model_entry.build_entry(model_entry.read_contents(inner))
    with guard(net) as g:
        reads.clear()
        prints = g.last_fingerprints(inner)
        assert prints is not None
        assert model_entry.is_known_to_match(entry, prints)
        assert reads == []


def test_a_model_is_told_from_another_by_the_reading() -> None:
    net, other = Net().eval(), Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(other))
    with guard(net) as g:
        prints = g.last_fingerprints(net)
        assert prints is not None
        assert not model_entry.is_known_to_match(entry, prints)


def test_where_a_change_would_be_no_violation_the_model_is_read_anew() -> None:
    net = Net().eval()
    with guard(net, mutable="body.*") as g:
        assert g.last_fingerprints(net) is None
    with guard(net, allow="state-mutated") as g:
        assert g.last_fingerprints(net) is None
    with guard(net) as g:
        with g.paused():
            assert g.last_fingerprints(net) is None
        with g.allow("state-mutated"):
            assert g.last_fingerprints(net) is None


def test_after_a_pause_it_is_what_the_guard_read_since() -> None:
    net = Net().eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    with guard(net) as g:
        with g.paused(), torch.no_grad():
            net.body.weight.add_(1)
        prints = g.last_fingerprints(net)
        assert prints is not None
        assert not model_entry.is_known_to_match(entry, prints)


def test_another_layout_in_memory_is_looked_at_and_holds() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    entry = model_entry.build_entry(model_entry.read_contents(net))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with guard(net) as g:
        prints = g.last_fingerprints(net)
        assert prints is not None
        assert not model_entry.is_known_to_match(entry, prints)
        assert model_entry.matches(entry, model_entry.read_contents(net, prints))


def test_what_is_read_to_be_locked_alone_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """To have the kernel tell who writes to it takes longer than to read it."""
    armed: list[object] = []

    def arm(tensors: object) -> list[object]:
        armed.append(tensors)
        return []

    monkeypatch.setattr("pytest_evalmode.observe.state.digest_cache.track", arm)
    net = nn.Linear(512, 512)
    model_entry.read_contents(net)
    assert armed == []
    snapshot.take_snapshot(net)
    assert len(armed) == 1
