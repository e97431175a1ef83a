"""The search that all kinds of data share: moves, then a cause that reproduces the current values.

A move changes where values are: the order of samples, a flip, the channels. No move, one move and two moves are tried
in turn, and the first that leaves equal values or a proven cause wins, so that the simplest explanation is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_evalmode.lock.causes.cause import Step

_MAX_MOVES = 2


class Proof(NamedTuple):
    """Steps that reproduce the current values, and how many numbers they take from them."""

    steps: tuple[Step, ...]
    fitted: int = 0


@dataclass(frozen=True)
class Moved:
    """The locked values after moves, beside the current ones."""

    was: Any
    now: Any
    origin: tuple[Any, Any]
    """Both before the moves."""
    similarity: float = 1.0
    steps: tuple[Step, ...] = ()
    functions: tuple[Callable[[Any], Any], ...] = ()
    kinds: int = 0
    """How many kinds of moves were already tried."""

    def move(self, values: Any) -> Any:
        """Apply the same moves to other values."""
        for function in self.functions:
            values = function(values)
        return values


class Move(NamedTuple):
    """A move: its steps, the function that moves the locked values, and the one that selects the current ones."""

    steps: tuple[Step, ...]
    function: Callable[[Any], Any]
    select: Callable[[Any], Any] = lambda now: now


Moves = Callable[[Any, Any], Iterable[Move]]
"""Returns the moves of one kind that are worth trying for the locked and the current values."""
Prover = Callable[[Moved], Iterable[Proof]]


def search(
    was: Any,
    now: Any,
    moves: Sequence[Moves],
    provers: Sequence[Prover],
    similarity: Callable[[Any, Any], float] = lambda was, now: 1.0,
    most: int = 3,
) -> list[Step] | None:
    """Return the fewest steps that turn the locked values into the current ones; None if nothing known does.

    Args:
        was: The locked values.
        now: The current values.
        moves: The kinds of moves; at most one of each is applied, in this order.
        provers: Each returns the proofs for moved values. The first is asked after every move; the others, which take
            long, only after the moves that leave the most similar values.
        similarity: How similar moved values are to the current ones; None if no cause can explain the rest.
        most: After how many moves the other provers are asked.
    """
    quick, *slow = provers
    reached = [Moved(was, now, (was, now), similarity(was, now))]
    tried: list[Moved] = []
    for _ in range(_MAX_MOVES + 1):
        steps = _prove(quick, reached)
        if steps is not None:
            return steps
        tried += reached
        reached = [each for before in reached for each in _move(before, moves, similarity)]
    best = max(each.similarity for each in tried)
    near = [each for each in tried if 1 - each.similarity < 1.5 * (1 - best) + 1e-9 and best > 0]
    near = sorted(near, key=lambda each: (len(each.steps), -each.similarity))[:most]
    return next((steps for prover in slow for each in near if (steps := _prove(prover, [each])) is not None), None)


def _prove(prover: Prover, reached: Iterable[Moved]) -> list[Step] | None:
    proofs = ((each, proof) for each in reached if each.similarity > 0 for proof in prover(each))
    return simplest([Proof((*moved.steps, *proof.steps), proof.fitted) for moved, proof in proofs])


def _move(before: Moved, moves: Sequence[Moves], similarity: Callable[[Any, Any], float]) -> Iterator[Moved]:
    for i in range(before.kinds, len(moves)):
        for move in moves[i](before.was, before.now):
            was, now = move.function(before.was), move.select(before.now)
            steps, functions = (*before.steps, *move.steps), (*before.functions, move.function)
            yield Moved(was, now, before.origin, similarity(was, now), steps, functions, i + 1)


def simplest(proofs: Sequence[Proof]) -> list[Step] | None:
    """Return the steps with the fewest steps and fitted numbers; causes that are equally simple are named together."""
    if not proofs:
        return None
    cost = min((len(each.steps), each.fitted) for each in proofs)
    best = [list(each.steps) for each in proofs if (len(each.steps), each.fitted) == cost]
    first = best[0]
    others = (
        dict.fromkeys(
            each[-1].words for each in best[1:] if each[:-1] == first[:-1] and each[-1].kind != first[-1].kind
        )
        if first
        else {}
    )
    if others:
        first[-1] = Step(first[-1].kind, " or ".join([first[-1].words, *others]), first[-1].details)
    return first
