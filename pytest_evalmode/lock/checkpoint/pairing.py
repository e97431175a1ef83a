"""Tensors that were renamed, are missing, or were added."""

from __future__ import annotations

from collections import defaultdict

from pytest_evalmode.lock.checkpoint.differences import Cause, Differences
from pytest_evalmode.lock.model_entry import TensorRecord
from pytest_evalmode.rules.wording import first_and_more, plural

PACKED_PARAMS = "_packed_params"
_WRAPPERS = frozenset({"base_model", "base_layer", "module", "_orig_mod", "model"})
"""Names that wrappers insert; the rest of the name shows which tensor it is."""


def find_renamed(diff: Differences) -> Cause | None:
    """Pair the locked with the current tensors, and find those that have another name.

    Must run first: it fills in `current_names`, `changed`, `missing` and `added`.
    """
    missing = [name for name in diff.locked if name not in diff.contents.records]
    added = [name for name in diff.contents.records if name not in diff.locked]
    # torch chooses the names of packed parameters, so they do not show what was renamed.
    added = [name for name in added if PACKED_PARAMS not in name]
    names, words = _pair_by_prefix(missing, added) or _pair_by_content(missing, added, diff)
    rest = [name for name in added if name not in names.values()]
    names |= _pair_without_wrappers([name for name in missing if name not in names], rest)
    diff.current_names = {
        name: names.get(name, name) for name in diff.locked if name in diff.contents.records or name in names
    }
    for name, new in diff.current_names.items():
        if _differs(diff.locked[name], diff.contents.records[new]):
            diff.add_changed(name)
    diff.missing = [name for name in missing if name not in names]
    taken = set(names.values())
    diff.added = [name for name in diff.contents.records if name not in diff.locked and name not in taken]
    return Cause("renamed", words, tuple(names.values())) if names and words else None


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


def _pair_by_content(missing: list[str], added: list[str], diff: Differences) -> tuple[dict[str, str], str]:
    """Pair tensors that are equal bit by bit, preferring those whose names end alike."""
    unpaired: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    for name in added:
        record = diff.contents.records[name]
        unpaired[record.dtype, record.shape, record.digest].append(name)
    names: dict[str, str] = {}
    for name in missing:
        record = diff.locked[name]
        alike = unpaired.get((record.dtype, record.shape, record.digest))
        if alike:
            last_part = name.rpartition(".")[2]
            new = next((other for other in alike if other.rpartition(".")[2] == last_part), alike[0])
            alike.remove(new)
            names[name] = new
    if not names:
        return {}, ""
    # The other tensors of a layer that was renamed have a new name too, whether or not their values changed.
    moved = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in names.items()}
    free = set(added) - set(names.values())
    for name in missing:
        layer, _, last_part = name.rpartition(".")
        if name not in names and layer in moved and f"{moved[layer]}.{last_part}" in free:
            names[name] = f"{moved[layer]}.{last_part}"
    shown = next(iter(names.items()))
    has = "has" if len(names) == 1 else "have"
    return names, f"{plural(len(names), 'tensor')} {has} another name ({shown[0]} -> {shown[1]})"


def _pair_without_wrappers(missing: list[str], added: list[str]) -> dict[str, str]:
    """Pair names that are the same without the parts that wrappers insert, as for a merged adapter."""
    by_core = {_core(name): name for name in added}
    return {name: by_core[_core(name)] for name in missing if _core(name) in by_core}


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def find_missing_and_added(diff: Differences) -> Cause | None:
    """Find missing and added tensors that no other cause explains."""
    parts = [
        f"{plural(len(names), 'tensor')} {verb} ({first_and_more(names)})"
        for names, verb in ((diff.missing, "missing"), (diff.added, "added"))
        if names
    ]
    return Cause("tensors", " and ".join(parts), (*diff.missing, *diff.added)) if parts else None
