"""Changes of a model's architecture that its tensors do not already show."""

from __future__ import annotations

from collections import defaultdict

from pytest_evalmode.lock.architecture import find_module_changes
from pytest_evalmode.lock.checkpoint.differences import Cause, Differences, owner_of
from pytest_evalmode.rules.wording import first_and_more, plural

_MAX_SHOWN = 3
_NEUTRAL = frozenset({"Identity", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"})
"""Types that compute nothing themselves."""


def find_architecture_changes(diff: Differences) -> Cause | None:
    """Find types and settings that changed, and modules without tensors that were added or removed.

    Must run before tensors are explained. Modules whose tensors show the change are left out.
    """
    was, now = diff.locked_architecture, diff.contents.architecture
    if not was or not now or was == now:
        return None
    owners = ((owner_of(old), owner_of(new)) for old, new in diff.current_names.items())
    renamed = {old: new for old, new in owners if old != new}
    resized = {owner_of(name) for name, each in diff.changed.items() if each.was.shape != each.now.shape}
    restructured = {parent for name in (*diff.missing, *diff.added) for parent in _parents(name)}
    old = {renamed.get(path, path): line for path, line in was.items()}
    changed: dict[tuple[str, str, str | None, str | None], list[str]] = defaultdict(list)
    one_sided: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    # Containers move together with their contents.
    containers = {owner_of(path) for path in (*old, *was, *now)}
    for change in find_module_changes(old, now):
        if change.path in restructured or (change.setting and change.path in resized):
            continue
        if change.setting or not (change.was is None or change.now is None):
            if change.path or not renamed:
                changed[change.type, change.setting, change.was, change.now].append(change.path or "the model")
        elif (
            change.path not in containers
            and change.type not in _NEUTRAL
            and (renamed or restructured.isdisjoint(_parents(change.path)))
        ):
            one_sided[change.type][change.was is None].append(change.path)
    words = [_describe(*key, paths) for key, paths in changed.items()]
    names = [path for paths in changed.values() for path in paths]
    for kind, (removed, added) in one_sided.items():
        same = min(len(removed), len(added)) if renamed else 0  # which moved as others did
        for paths, verb in ((removed[same:], "removed"), (added[same:], "added")):
            if paths:
                names += paths
                where = "" if renamed else f" ({first_and_more(paths)})"
                words.append(f"{plural(len(paths), f'{kind} module')} {verb}{where}")
    if not words:
        return None
    more = f" (and {len(words) - _MAX_SHOWN} more)" if len(words) > _MAX_SHOWN else ""
    return Cause("architecture", "; ".join(words[:_MAX_SHOWN]) + more, tuple(names))


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _describe(kind: str, setting: str, was: str | None, now: str | None, names: list[str]) -> str:
    shown = first_and_more(names)
    if not setting:
        return f"{shown} {'is' if len(names) == 1 else 'are'} now {now}, not {was}"
    old = f"not {was}" if was is not None else "which was not set"
    return f"{setting} of {shown} ({kind}) is {now if now is not None else 'not set'}, {old}"
