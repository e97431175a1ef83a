"""Tensors under other names, and those that are gone or new."""

from __future__ import annotations

from collections import defaultdict

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained
from pytest_evalmode.lock.model_entry import TensorRecord
from pytest_evalmode.rules.wording import first_and_more, plural

PACKED_PARAMS = "_packed_params"


def find_renamed(case: Unexplained) -> Cause | None:
    """Pairs what has another name, and tells it."""
    missing = [name for name in case.locked if name not in case.current.records]
    added = [name for name in case.current.records if name not in case.locked]
    added = [name for name in added if PACKED_PARAMS not in name]  # whose names are no one's choice
    names, words = _by_prefix(missing, added) or _by_content(missing, added, case)
    case.current_names = {
        name: names.get(name, name) for name in case.locked if name in case.current.records or name in names
    }
    case.changed = {
        name: new for name, new in case.current_names.items() if _differs(case.locked[name], case.current.records[new])
    }
    case.missing = [name for name in missing if name not in names]
    taken = set(names.values())
    case.added = [name for name in case.current.records if name not in case.locked and name not in taken]
    return Cause("renamed", words, tuple(names.values())) if names else None


def _differs(was: TensorRecord, now: TensorRecord) -> bool:
    return (was.dtype, was.shape, was.digest) != (now.dtype, now.shape, now.digest)


def _by_prefix(missing: list[str], added: list[str]) -> tuple[dict[str, str], str] | None:
    """All that is missing under one prefix, or without one."""
    if not missing or not added:
        return None
    for longer, shorter, verb in ((added, missing, "gained"), (missing, added, "lost")):
        heads = {name[: -len(shorter[0])] for name in longer if name.endswith(f".{shorter[0]}")}
        for head in heads:
            if all(f"{head}{name}" in set(longer) for name in shorter) and len(missing) <= len(added):
                names = {name: f"{head}{name}" for name in shorter}
                names = names if verb == "gained" else {long: short for short, long in names.items()}
                return names, f"{plural(len(names), 'name')} {verb} the prefix `{head}`"
    return None


def _by_content(missing: list[str], added: list[str], case: Unexplained) -> tuple[dict[str, str], str]:
    """What holds the same, bit by bit, one to one; of equal tensors in the order in which they stand."""
    waiting: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    for name in added:
        line = case.current.records[name]
        waiting[line.dtype, line.shape, line.digest].append(name)
    names: dict[str, str] = {}
    for name in missing:
        line = case.locked[name]
        same = waiting.get((line.dtype, line.shape, line.digest))
        if same:
            tail = name.rpartition(".")[2]
            new = next((other for other in same if other.rpartition(".")[2] == tail), same[0])
            same.remove(new)
            names[name] = new
    shown = next(iter(names.items()), ("", ""))
    has = "has" if len(names) == 1 else "have"
    return names, f"{plural(len(names), 'tensor')} {has} another name ({shown[0]} -> {shown[1]})"


def find_missing_and_added(case: Unexplained) -> Cause | None:
    """Tensors that are gone or new for no reason that is known."""
    said = [
        f"{plural(len(names), 'tensor')} {verb} ({first_and_more(names)})"
        for names, verb in ((case.missing, "missing"), (case.added, "added"))
        if names
    ]
    return Cause("tensors", " and ".join(said), (*case.missing, *case.added)) if said else None
