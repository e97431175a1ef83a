from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Generator

from pytest_evalmode.observe.state.generators import engine

pytestmark = pytest.mark.skipif(not Path(engine._MEMORY).exists(), reason="the system does not show its memory")

ACTS: dict[str, Callable[[Generator], object]] = {
    "nothing": lambda own: None,
    "a number": lambda own: torch.rand(1, generator=own),
    "a round of the engine": lambda own: torch.empty(624).uniform_(generator=own),
    "as many as leave the place where it was": lambda own: torch.randint(2, (624,), generator=own),
    "one normal, of which the other is kept": lambda own: torch.randn(1, dtype=torch.float64, generator=own),
    "the normal that was kept": lambda own: torch.randn(1, dtype=torch.float64, generator=own),
    "normals in one go": lambda own: torch.randn(17, generator=own),
    "another seed": lambda own: own.manual_seed(3),
    "the same seed": lambda own: own.manual_seed(3),
    "a draw behind it": lambda own: torch.rand(3, generator=own),
    "what it was": lambda own: own.set_state(own.get_state()),
}


def test_the_engine_says_what_the_generator_says() -> None:
    """It changes where the state does, and nowhere else."""
    own = Generator()
    place = engine.place(own)
    assert place is not None, "this torch keeps its engine elsewhere"
    lies = engine.at(own, place)
    seen: list[tuple[bytes, bytes]] = []
    for _ in range(3):
        for act in ACTS.values():
            act(own)
            seen.append((engine.asked(own), engine.read(lies.raw)))
    assert len({told for told, _ in seen}) > len(ACTS)
    for told, read in seen:
        assert [told == other for other, _ in seen] == [read == other for _, other in seen]


def test_what_is_put_back_is_the_same_though_normals_were_kept_in_between() -> None:
    own = Generator()
    place = engine.place(own)
    assert place is not None, "this torch keeps its engine elsewhere"
    lies = engine.at(own, place)
    state, before = own.get_state(), engine.read(lies.raw)
    torch.randn(1, dtype=torch.float64, generator=own)
    assert engine.read(lies.raw) != before
    own.set_state(state)
    assert engine.read(lies.raw) == before


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Told", engine.Engine),  # another order of the state
        ("read", lambda data: data),  # with what is left over in the gaps
        ("_MEMORY", "/proc/self/no such file"),
        ("_HEAD", 512),
    ],
)
def test_where_it_is_not_what_it_is_known_to_be_nobody_looks(
    name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, name, other)
    assert engine.place(Generator()) is None


def test_without_an_engine_the_generator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_default", lambda: None)
    before = engine.state()
    assert engine.same(before, engine.state())
    torch.rand(1)
    assert not engine.same(before, engine.state())
