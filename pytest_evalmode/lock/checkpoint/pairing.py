"""Tensors that were renamed, are missing, or were added."""

from __future__ import annotations

from collections import defaultdict

from pytest_evalmode.lock.checkpoint.differences import Cause, ChangedTensor, Differences, different_parts
from pytest_evalmode.lock.model_entry import TensorRecord
from pytest_evalmode.rules.wording import first_and_more, plural

PACKED_PARAMS = "_packed_params"
_WRAPPERS = frozenset({"base_model", "base_layer", "module", "_orig_mod", "model"})
"""Names that wrappers insert; the rest of the name shows which tensor it is."""


def find_renamed(diff: Differences) -> Cause | None:
    """Pair the locked with the current tensors, and find those that have another name.

    Must run first: it fills in `current_names`, `changed`, `missing` and `added`.
    """
    now = diff.contents.records
    missing = [name for name in diff.locked if name not in now]
    # torch chooses the names of packed parameters, so they do not show what was renamed.
    added = [name for name in now if name not in diff.locked and PACKED_PARAMS not in name]
    names = _pair_by_content(missing, added, diff)
    renamed = Cause("renamed", _describe(names), tuple(names.values())) if names else None
    taken = set(names.values())
    free = {_core(name): name for name in added if name not in taken}
    names |= {name: free[_core(name)] for name in missing if name not in names and _core(name) in free}
    diff.current_names = {
        name: names.get(name, name) for name in diff.locked if name in diff.contents.records or name in names
    }
    for name, new in diff.current_names.items():
        was, is_now = diff.locked[name], now[new]
        if _content(was) != _content(is_now):
            tensor = diff.contents.tensors[new]
            diff.changed[name] = ChangedTensor(name, was, is_now, tensor, diff.samples.get(name))
    diff.missing = [name for name in missing if name not in names]
    taken.update(names.values())
    diff.added = [name for name in now if name not in diff.locked and name not in taken]
    return renamed


def _content(record: TensorRecord) -> tuple[str, tuple[int, ...], str]:
    return record.dtype, record.shape, record.digest


def _pair_by_content(missing: list[str], added: list[str], diff: Differences) -> dict[str, str]:
    """Pair tensors that are equal bit by bit, preferring those whose names end alike, and what moved with them."""
    unpaired = defaultdict(list)
    for name in added:
        unpaired[_content(diff.contents.records[name])].append(name)
    names: dict[str, str] = {}
    for name in missing:
        alike = unpaired[_content(diff.locked[name])]
        if alike:
            names[name] = min(alike, key=lambda other: len(different_parts(name, other)[0]))
            alike.remove(names[name])
    # The other tensors of a layer that was renamed have a new name too, whether or not their values changed.
    moved = dict(different_parts(*pair) for pair in names.items())
    free = set(added) - set(names.values())
    for name in [name for name in missing if name not in names]:
        others = [f"{new}{name.removeprefix(old)}" for old, new in moved.items() if name.startswith(f"{old}.")]
        other = next((other for other in others if other in free), None)
        names |= {} if other is None else {name: other}
    return names


def _describe(names: dict[str, str]) -> str:
    for verb, pairs in (("gained", names.items()), ("lost", [(new, old) for old, new in names.items()])):
        prefixes = {longer.removesuffix(shorter) for shorter, longer in pairs}
        if len(prefixes) == 1 and (prefix := prefixes.pop()).endswith("."):
            return f"{plural(len(names), 'name')} {verb} the prefix `{prefix}`"
    old, new = next(iter(names.items()))
    return f"{plural(len(names), 'tensor')} {'has' if len(names) == 1 else 'have'} another name ({old} -> {new})"


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
