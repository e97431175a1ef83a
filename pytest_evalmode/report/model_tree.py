"""A model as a tree that fits a screen: what happened to which module, the rest folded."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pytest_evalmode.rules.state_rules import describe_change
from pytest_evalmode.rules.wording import plural
from pytest_evalmode.trace import ForwardCall, Trace, WatchedModel

MAX_ROWS = 30
"""Of a tree, at most: a screen."""
_FEW = 12
"""So many marks beneath a branch are shown where they are; of more, their sum."""
_RUN = 3
"""So many branches side by side that are alike become one row, where there are many."""

Mark = tuple[str, str]
"""What happened to a module, and how: `("changed", "running_mean  max |Δ| 0.031, 64 of 64 elements")`."""


@dataclass(slots=True, eq=False)
class _Node:
    """A module with what happened to it and, once told, to how many beneath."""

    path: str
    name: str
    type: str
    marks: list[Mark] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    size: int = 1
    dirty: int = 0

    def count(self) -> None:
        for child in self.children:
            child.count()
        self.size = 1 + sum(child.size for child in self.children)
        self.dirty = bool(self.marks) + sum(child.dirty for child in self.children)

    def beneath(self) -> Iterator[Mark]:
        """The marks of it and of all beneath it."""
        yield from self.marks
        for child in self.children:
            yield from child.beneath()


def model_trees(trace: Trace) -> dict[str, dict[str, Any]]:
    """The models to which something happened, each as nested rows: `name`, `type`, `marks`, `rows`, `modules`."""
    marks = _marks(trace)
    found = [finding.module for call in trace.calls for finding in (*call.training, *call.draws, *call.unregistered)]
    return {
        model.name: _tree(
            model, marks[model.name], {part.path: part.type for part in found if part.model == model.name}
        )
        for model in trace.models
        if model.name in marks
    }


def _marks(trace: Trace) -> dict[str, dict[str, list[Mark]]]:
    """What happened to which module of which model, by its path; each thing once."""
    found: dict[str, dict[str, dict[Mark, None]]] = {}
    for model, path, mark in (*_of_calls(trace.calls), *_of_changes(trace)):
        found.setdefault(model, {}).setdefault(path, {})[mark] = None
    return {model: {path: list(marks) for path, marks in paths.items()} for model, paths in found.items()}


def _of_calls(calls: Sequence[ForwardCall]) -> Iterator[tuple[str, str, Mark]]:
    switched = {finding.since for call in calls for finding in call.training}
    for call in calls:
        for finding in call.training:
            # One line that switched all is told with the violation, and need not be with each module.
            since = f"since {finding.since}" if finding.since and len(switched) > 1 else ""
            yield finding.module.model, finding.module.path, ("training", since)
        if call.autograd:
            yield call.autograd.module.model, call.autograd.module.path, ("recorded autograd", call.autograd.why)
        for what, findings in (
            ("used batch statistics", call.batch_stats),
            ("drew", call.draws),
            ("unregistered", call.unregistered),
        ):
            for finding in findings:
                yield finding.module.model, finding.module.path, (what, finding.why)
        for change in call.attributes:
            text = f"{change.attribute}: {change.before} -> {change.after}"
            yield change.part.model, change.part.path, ("changed", text)


def _of_changes(trace: Trace) -> Iterator[tuple[str, str, Mark]]:
    for change in trace.changes:
        owner, _, tensor = change.path.rpartition(".")
        yield change.model, owner, ("changed", f"{tensor}  {describe_change(change)}".strip())


def _tree(model: WatchedModel, marks: dict[str, list[Mark]], guests: dict[str, str]) -> dict[str, Any]:
    types = {**guests, **dict(model.modules)}
    root = _Node("", model.name, model.type, marks.get("", []))
    nodes = {"": root}
    for path in dict.fromkeys(
        [path for path, _ in model.modules] + list(marks)
    ):  # what ran inside without being part of it stands at the end
        _plant(path, nodes, types, marks)
    root.count()
    return _row(root, _opened(root))


def _plant(path: str, nodes: dict[str, _Node], types: dict[str, str], marks: dict[str, list[Mark]]) -> _Node:
    """The node of a path, made with those above it where they are missing."""
    if path not in nodes:
        above, _, name = path.rpartition(".")
        node = nodes[path] = _Node(path, name, types.get(path, ""), marks.get(path, []))
        _plant(above, nodes, types, marks).children.append(node)
    return nodes[path]


def _opened(root: _Node) -> set[str]:
    """Which branches are shown open: what happened to few modules stands where it happened, while there is room."""
    opened = {""}
    room = MAX_ROWS - len(_groups(root))
    waiting = [(child.dirty, child.path, child) for child in root.children if child.dirty and child.children]
    heapq.heapify(waiting)
    while waiting:
        dirty, path, node = heapq.heappop(waiting)
        rows = len(_groups(node))
        if dirty <= _FEW and rows <= room:
            opened.add(path)
            room -= rows
            for child in node.children:
                if child.dirty and child.children:
                    heapq.heappush(waiting, (child.dirty, child.path, child))
    return opened


def _row(node: _Node, opened: set[str]) -> dict[str, Any]:
    told = node.path in opened or not node.children
    row = {"name": node.name, "type": node.type, "modules": node.size}
    row["marks"] = node.marks if told else _sum(node.beneath())
    row["rows"] = [_joined_row(group, opened) for group in _groups(node)] if told else []
    return row


def _joined_row(group: Sequence[_Node], opened: set[str]) -> dict[str, Any]:
    """Several branches that are alike as one row."""
    if len(group) == 1 and group[0].dirty:
        return _row(group[0], opened)
    names = [node.name for node in group]
    types = {node.type for node in group}
    return {
        "name": names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}",
        "type": types.pop() if len(types) == 1 else "",
        "times": len(group),
        "modules": sum(node.size for node in group),
        "marks": _sum(mark for node in group for mark in node.beneath()),
        "rows": [],
    }


def _groups(node: _Node) -> list[list[_Node]]:
    """The children: clean neighbours together and, where there are many, those that are alike; never more than fit."""
    groups = _neighbours(node.children, lambda child: None if child.dirty else ())
    if len(groups) > _FEW:
        alike = _neighbours(node.children, lambda child: (child.type, *{kind for kind, _ in child.beneath()}))
        groups = [part for group in alike for part in ([group] if len(group) >= _RUN else [[each] for each in group])]
        groups = _merged_clean(groups)
    if len(groups) > MAX_ROWS:
        groups = [*groups[: MAX_ROWS - 1], [child for group in groups[MAX_ROWS - 1 :] for child in group]]
    return groups


def _merged_clean(groups: list[list[_Node]]) -> list[list[_Node]]:
    merged: list[list[_Node]] = []
    for group in groups:
        clean = not any(node.dirty for node in group)
        if clean and merged and not any(node.dirty for node in merged[-1]):
            merged[-1] = [*merged[-1], *group]
        else:
            merged.append(group)
    return merged


def _neighbours(children: Sequence[_Node], key: Any) -> list[list[_Node]]:
    """Neighbours with the same key together; those whose key is None stand alone."""
    return [
        part
        for value, group in groupby(children, key)
        for part in ([list(group)] if value is not None else [[each] for each in group])
    ]


def _sum(marks: Iterable[Mark]) -> list[Mark]:
    """One mark a kind: of how many, and of the first how far."""
    found = list(marks)
    counts = Counter(kind for kind, _ in found)
    firsts: dict[str, str] = {}
    for kind, text in found:
        firsts.setdefault(kind, text)
    return [
        (kind, firsts[kind] if n == 1 else f"{plural(n, _NOUNS.get(kind, 'module'))}: {firsts[kind]}".rstrip(": "))
        for kind, n in counts.items()
    ]


_NOUNS = {"changed": "tensor"}
