"""Changes of a model's architecture that its tensors do not already show."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from pytest_evalmode.lock.architecture import ModuleChange, expand, find_module_changes
from pytest_evalmode.lock.checkpoint.differences import Cause, Differences, owner_of
from pytest_evalmode.rules.wording import first_and_more, plural

_MAX_SHOWN = 3
_NEUTRAL = frozenset({"Identity", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"})
"""Types that compute nothing themselves."""


class TensorOwners:
    """The modules whose tensors are missing, new, renamed or of another shape, before any cause explains these."""

    def __init__(self, diff: Differences) -> None:
        self.renamed = {
            owner_of(old): owner_of(new) for old, new in diff.current_names.items() if owner_of(old) != owner_of(new)
        }
        self.resized = {owner_of(name) for name, each in diff.changed.items() if each.was.shape != each.now.shape}
        gone_or_new = [*diff.missing, *diff.added]
        self.restructured = {
            ".".join(parts[:i]) for name in gone_or_new for parts in [name.split(".")] for i in range(1, len(parts))
        }


def find_architecture_changes(owners: TensorOwners, was: Mapping[str, str], now: Mapping[str, str]) -> Cause | None:
    """Find types and settings that changed, and modules without tensors that are missing or new."""
    if not was or not now or was == now:
        return None
    words, paths = [], []
    changes = find_module_changes({owners.renamed.get(k, k): line for k, line in expand(was).items()}, expand(now))
    groups: dict[tuple[str, str, str | None, str | None], list[str]] = defaultdict(list)
    moved: list[ModuleChange] = []
    for change in changes:
        is_on_one_side = not change.setting and (change.was is None or change.now is None)
        if change.path in owners.restructured or (change.setting and change.path in owners.resized):
            continue
        if is_on_one_side and owners.renamed:
            moved.append(change)
        elif is_on_one_side and _is_inside(change.path, owners.restructured):
            continue
        elif not owners.renamed or change.path:
            groups[change.type, change.setting, change.was, change.now].append(change.path)
    for key, names in groups.items():
        words.append(_describe(*key, [name or "the model" for name in names]))
        paths += names
    # Containers move together with what they contain.
    parents = {owner_of(path) for side in (was, now) for path in expand(side)}
    words += _describe_moved([each for each in moved if each.path not in parents and each.type not in _NEUTRAL])
    if not words:
        return None
    more = f" (and {len(words) - _MAX_SHOWN} more)" if len(words) > _MAX_SHOWN else ""
    return Cause("architecture", "; ".join(words[:_MAX_SHOWN]) + more, tuple(paths))


def _is_inside(path: str, owners: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:i]) in owners for i in range(1, len(parts)))


def _describe(kind: str, setting: str, was: str | None, now: str | None, names: list[str]) -> str:
    is_are, shown = "is" if len(names) == 1 else "are", first_and_more(names)
    if setting:
        old = f"not {was}" if was is not None else "which was not set"
        return f"{setting} of {shown} ({kind}) is {now if now is not None else 'not set'}, {old}"
    if was is None or now is None:
        return f"{shown} ({kind}) {is_are} {'missing' if now is None else 'new'}"
    return f"{shown} {is_are} now {now}, not {was}"


def _describe_moved(changes: list[ModuleChange]) -> list[str]:
    """Describe how many modules without tensors are missing or new, if their names changed as others' did."""
    counts = Counter(change.type for change in changes if change.was is None)
    counts.subtract(Counter(change.type for change in changes if change.now is None))
    return [
        f"{plural(abs(count), f'{kind} module')} {'added' if count > 0 else 'removed'}"
        for kind, count in counts.items()
        if count
    ]
