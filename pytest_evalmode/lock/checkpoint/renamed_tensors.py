"""Tensors that were renamed, are missing, or were added."""

from __future__ import annotations

from collections import defaultdict

from pytest_evalmode.lock.checkpoint.unexplained import Cause, Unexplained
from pytest_evalmode.lock.model_entry import TensorRecord
from pytest_evalmode.rules.wording import first_and_more, plural

PACKED_PARAMS = "_packed_params"


def find_renamed(diff: Unexplained) -> Cause | None:
    """Pair the locked with the current tensors, and find those that have another name.

    Must run first: it fills in `current_names`, `changed`, `missing` and `added`.
    """
    missing = [name for name in diff.locked if name not in diff.current.records]
    added = [name for name in diff.current.records if name not in diff.locked]
    # torch chooses the names of packed parameters, so they do not show what was renamed.
    added = [name for name in added if PACKED_PARAMS not in name]
    names, words = _pair_by_prefix(missing, added) or _pair_by_content(missing, added, diff)
    diff.current_names = {
        name: names.get(name, name) for name in diff.locked if name in diff.current.records or name in names
    }
    diff.changed = {
        name: new for name, new in diff.current_names.items() if _differs(diff.locked[name], diff.current.records[new])
    }
    diff.missing = [name for name in missing if name not in names]
    taken = set(names.values())
    diff.added = [name for name in diff.current.records if name not in diff.locked and name not in taken]
    return Cause("renamed", words, tuple(names.values())) if names else None


def _differs(was: TensorRecord, now: TensorRecord) -> bool:
    return (was.dtype, was.shape, was.digest) != (now.dtype, now.shape, now.digest)


def _pair_by_prefix(missing: list[str], added: list[str]) -> tuple[dict[str, str], str] | None:
    """Pair names that all gained or all lost the same prefix."""
    if not missing or not added:
        return None
    for longer, shorter, verb in ((added, missing, "gained"), (missing, added, "lost")):
        prefixes = {name[: -len(shorter[0])] for name in longer if name.endswith(f".{shorter[0]}")}
        for prefix in prefixes:
            if all(f"{prefix}{name}" in set(longer) for name in shorter) and len(missing) <= len(added):
                names = {name: f"{prefix}{name}" for name in shorter}
                names = names if verb == "gained" else {long: short for short, long in names.items()}
                return names, f"{plural(len(names), 'name')} {verb} the prefix `{prefix}`"
    return None


def _pair_by_content(missing: list[str], added: list[str], diff: Unexplained) -> tuple[dict[str, str], str]:
    """Pair tensors that are equal bit by bit, preferring pairs whose names have a common end."""
    unpaired: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    for name in added:
        record = diff.current.records[name]
        unpaired[record.dtype, record.shape, record.digest].append(name)
    names: dict[str, str] = {}
    for name in missing:
        record = diff.locked[name]
        equal = unpaired.get((record.dtype, record.shape, record.digest))
        if equal:
            last_part = name.rpartition(".")[2]
            new = next((other for other in equal if other.rpartition(".")[2] == last_part), equal[0])
            equal.remove(new)
            names[name] = new
    shown = next(iter(names.items()), ("", ""))
    has = "has" if len(names) == 1 else "have"
    return names, f"{plural(len(names), 'tensor')} {has} another name ({shown[0]} -> {shown[1]})"


def find_missing_and_added(diff: Unexplained) -> Cause | None:
    """Find missing and added tensors that no other cause explains."""
    parts = [
        f"{plural(len(names), 'tensor')} {verb} ({first_and_more(names)})"
        for names, verb in ((diff.missing, "missing"), (diff.added, "added"))
        if names
    ]
    return Cause("tensors", " and ".join(parts), (*diff.missing, *diff.added)) if parts else None
