"""The tree of a model for the HTML report: it shows what happened to each module, collapsed to fit one screen."""

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
"""Maximum number of rows of a tree: one screen."""
_MAX_EXPANDED = 12
"""A branch with more marked modules is collapsed into one row, and so are similar children if there are more."""
_MIN_RUN = 3
"""Minimum number of similar neighbors that become one row."""

Mark = tuple[str, str]
"""A kind and a text: `("changed", "running_mean  max |Δ| 0.031, 64 of 64 elements")`."""


@dataclass(slots=True, eq=False)
class _Node:
    """A module with its marks; `count()` sets the number of modules and of marked modules in its branch."""

    path: str
    name: str
    type: str
    marks: list[Mark] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)
    size: int = 1
    marked: int = 0

    def count(self) -> None:
        for child in self.children:
            child.count()
        self.size = 1 + sum(child.size for child in self.children)
        self.marked = bool(self.marks) + sum(child.marked for child in self.children)

    def all_marks(self) -> Iterator[Mark]:
        """Yield the marks of the module and of all modules below it."""
        yield from self.marks
        for child in self.children:
            yield from child.all_marks()


def model_trees(trace: Trace) -> dict[str, dict[str, Any]]:
    """Return the models with marks as nested rows with the keys `name`, `type`, `marks`, `rows` and `modules`."""
    marks = _marks(trace)
    observed = [o.module for call in trace.calls for o in (*call.training, *call.draws, *call.unregistered)]
    return {
        model.name: _tree(
            model, marks[model.name], {module.path: module.type for module in observed if module.model == model.name}
        )
        for model in trace.models
        if model.name in marks
    }


def _marks(trace: Trace) -> dict[str, dict[str, list[Mark]]]:
    """Return the marks by model and module path, without duplicates."""
    unique: dict[str, dict[str, dict[Mark, None]]] = {}
    for model, path, mark in (*_call_marks(trace.calls), *_change_marks(trace)):
        unique.setdefault(model, {}).setdefault(path, {})[mark] = None
    return {model: {path: list(marks) for path, marks in paths.items()} for model, paths in unique.items()}


def _call_marks(calls: Sequence[ForwardCall]) -> Iterator[tuple[str, str, Mark]]:
    switches = {observation.since for call in calls for observation in call.training}
    for call in calls:
        for observation in call.training:
            # A line that switched all modules is shown with the violation, not with each module.
            since = f"since {observation.since}" if observation.since and len(switches) > 1 else ""
            yield observation.module.model, observation.module.path, ("training", since)
        if call.autograd:
            yield call.autograd.module.model, call.autograd.module.path, ("recorded autograd", call.autograd.why)
        for kind, observations in (
            ("used batch statistics", call.batch_stats),
            ("drew random numbers", call.draws),
            ("unregistered", call.unregistered),
        ):
            for observation in observations:
                yield observation.module.model, observation.module.path, (kind, observation.why)
        for change in call.attributes:
            text = f"{change.attribute}: {change.before} -> {change.after}"
            yield change.module.model, change.module.path, ("changed", text)


def _change_marks(trace: Trace) -> Iterator[tuple[str, str, Mark]]:
    for change in trace.changes:
        owner, _, tensor = change.path.rpartition(".")
        yield change.model, owner, ("changed", f"{tensor}  {describe_change(change)}".strip())


def _tree(model: WatchedModel, marks: dict[str, list[Mark]], observed_types: dict[str, str]) -> dict[str, Any]:
    types = {**observed_types, **dict(model.modules)}
    root = _Node("", model.name, model.type, marks.get("", []))
    nodes = {"": root}
    # The paths of unregistered modules are only in `marks`; they come last.
    for path in dict.fromkeys([path for path, _ in model.modules] + list(marks)):
        _add_node(path, nodes, types, marks)
    root.count()
    return _row(root, _expanded(root))


def _add_node(path: str, nodes: dict[str, _Node], types: dict[str, str], marks: dict[str, list[Mark]]) -> _Node:
    """Return the node of a path; create it and its parents if they are missing."""
    if path not in nodes:
        parent, _, name = path.rpartition(".")
        node = nodes[path] = _Node(path, name, types.get(path, ""), marks.get(path, []))
        _add_node(parent, nodes, types, marks).children.append(node)
    return nodes[path]


def _expanded(root: _Node) -> set[str]:
    """Return the paths of the expanded branches: those with the fewest marked modules first, while there is room."""
    expanded = {""}
    room = MAX_ROWS - len(_groups(root))
    waiting = [(child.marked, child.path, child) for child in root.children if child.marked and child.children]
    heapq.heapify(waiting)
    while waiting:
        marked, path, node = heapq.heappop(waiting)
        rows = len(_groups(node))
        if marked <= _MAX_EXPANDED and rows <= room:
            expanded.add(path)
            room -= rows
            for child in node.children:
                if child.marked and child.children:
                    heapq.heappush(waiting, (child.marked, child.path, child))
    return expanded


def _row(node: _Node, expanded: set[str]) -> dict[str, Any]:
    shown = node.path in expanded or not node.children
    row = {"name": node.name, "type": node.type, "modules": node.size}
    row["marks"] = node.marks if shown else _summarize(node.all_marks())
    row["rows"] = [_group_row(group, expanded) for group in _groups(node)] if shown else []
    return row


def _group_row(group: Sequence[_Node], expanded: set[str]) -> dict[str, Any]:
    """Return one row for a group of branches."""
    if len(group) == 1 and group[0].marked:
        return _row(group[0], expanded)
    names = [node.name for node in group]
    types = {node.type for node in group}
    return {
        "name": names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}",
        "type": types.pop() if len(types) == 1 else "",
        "times": len(group),
        "modules": sum(node.size for node in group),
        "marks": _summarize(mark for node in group for mark in node.all_marks()),
        "rows": [],
    }


def _groups(node: _Node) -> list[list[_Node]]:
    """Group the children: clean neighbors; if there are many, also similar ones, and the rest beyond MAX_ROWS."""
    groups = list(_group_neighbors(node.children, min_run=len(node.children) + 1))
    if len(groups) > _MAX_EXPANDED:
        groups = list(_group_neighbors(node.children, _MIN_RUN))
    if len(groups) > MAX_ROWS:
        groups = [*groups[: MAX_ROWS - 1], [child for group in groups[MAX_ROWS - 1 :] for child in group]]
    return groups


def _group_neighbors(children: Sequence[_Node], min_run: int) -> Iterator[list[_Node]]:
    """Group clean neighbors, and at least `min_run` neighbors of the same type with the same kinds of marks."""

    def key(child: _Node) -> object:
        return (child.type, {kind for kind, _ in child.all_marks()}) if child.marked else ()

    for _, neighbors in groupby(children, key):
        group = list(neighbors)
        yield from [group] if not group[0].marked or len(group) >= min_run else [[child] for child in group]


def _summarize(marks: Iterable[Mark]) -> list[Mark]:
    """Return one mark per kind: the number of marks and the text of the first."""
    marks = list(marks)
    counts = Counter(kind for kind, _ in marks)
    firsts: dict[str, str] = {}
    for kind, text in marks:
        firsts.setdefault(kind, text)
    return [
        (kind, firsts[kind] if n == 1 else f"{plural(n, _NOUNS.get(kind, 'module'))}: {firsts[kind]}".rstrip(": "))
        for kind, n in counts.items()
    ]


_NOUNS = {"changed": "tensor"}
