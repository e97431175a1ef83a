from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator

from pytest_evalmode.observe.state.generators import engine

pytestmark = pytest.mark.skipif(not Path(engine._MEMORY).exists(), reason="needs /proc/self/mem")

ACTS: dict[str, Callable[[Generator], object]] = {
    "nothing": lambda own: None,
    "a number": lambda own: torch.rand(1, generator=own),
    "a round of the engine": lambda own: torch.empty(624).uniform_(generator=own),
    "a full round in integers": lambda own: torch.randint(2, (624,), generator=own),
    "a normal, with a second one cached": lambda own: torch.randn(1, dtype=torch.float64, generator=own),
    "the cached normal": lambda own: torch.randn(1, dtype=torch.float64, generator=own),
    "normals in one go": lambda own: torch.randn(17, generator=own),
    "another seed": lambda own: own.manual_seed(3),
    "the same seed": lambda own: own.manual_seed(3),
    "a draw after it": lambda own: torch.rand(3, generator=own),
    "its own state": lambda own: own.set_state(own.get_state()),
}


def test_the_engine_changes_when_the_generator_does() -> None:
    """The engine in memory changes exactly when `get_state()` does."""
    own = Generator()
    offset = engine.find_offset(own)
    assert offset is not None, "the memory layout of this torch is not known"
    memory = engine.at(own, offset)
    seen: list[tuple[bytes, bytes]] = []
    for _ in range(3):
        for act in ACTS.values():
            act(own)
            seen.append((engine.saved_state(own), engine.read(memory.raw)))
    assert len({saved for saved, _ in seen}) > len(ACTS)
    for saved, read in seen:
        assert [saved == other for other, _ in seen] == [read == other for _, other in seen]


def test_a_restored_state_is_equal_although_normals_were_cached_in_between() -> None:
    own = Generator()
    offset = engine.find_offset(own)
    assert offset is not None, "the memory layout of this torch is not known"
    memory = engine.at(own, offset)
    state, before = own.get_state(), engine.read(memory.raw)
    torch.randn(1, dtype=torch.float64, generator=own)
    assert engine.read(memory.raw) != before
    own.set_state(state)
    assert engine.read(memory.raw) == before


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("SavedState", engine.Engine),  # another order of the fields
        ("read", lambda data: data),  # with the padding
        ("_MEMORY", "/proc/self/no such file"),
        ("_HEAD", 512),
    ],
)
def test_an_unknown_memory_layout_is_not_read(name: str, other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, name, other)
    assert engine.find_offset(Generator()) is None


def test_without_an_engine_get_state_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_default", lambda: None)
    before = engine.state()
    assert engine.same(before, engine.state())
    torch.rand(1)
    assert not engine.same(before, engine.state())
