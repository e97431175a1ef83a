"""The tree of a model for the HTML report: it shows what happened to each module, collapsed to fit one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pytest_evalmode.rules.state_rules import describe_change
from pytest_evalmode.rules.wording import plural
from pytest_evalmode.trace import Trace, WatchedModel

MAX_ROWS = 30
"""Maximum number of rows of a tree: one screen."""
_MAX_CHILDREN = 12
"""If a module has more, similar neighbors become one row."""

Mark = tuple[str, str]
"""A kind and a text: `("changed", "running_mean  max |Δ| 0.031, 64 of 64 elements")`."""


@dataclass(slots=True, eq=False)
class _Node:
    """A module with its marks."""

    name: str
    type: str
    marks: list[Mark]
    children: list[_Node] = field(default_factory=list)

    def branch(self) -> list[_Node]:
        """Return the module and all modules below it."""
        return [self, *(node for child in self.children for node in child.branch())]

    def all_marks(self) -> list[Mark]:
        """Return the marks of the module and of all modules below it."""
        return [mark for node in self.branch() for mark in node.marks]


def model_trees(trace: Trace) -> dict[str, dict[str, Any]]:
    """Return the models with marks as nested rows: `name`, `type`, `times`, `modules`, `marks` and `rows`."""
    marks: dict[str, dict[str, list[Mark]]] = {}
    for model, path, mark in dict.fromkeys(_marks(trace)):
        marks.setdefault(model, {}).setdefault(path, []).append(mark)
    observed = [o.module for call in trace.calls for o in (*call.training, *call.draws, *call.unregistered)]
    types = {(module.model, module.path): module.type for module in observed}
    return {model.name: _tree(model, marks[model.name], types) for model in trace.models if model.name in marks}


def _marks(trace: Trace) -> Iterator[tuple[str, str, Mark]]:
    """Yield the marks of a window, each with its model and the path of its module."""
    switches = {observation.since for call in trace.calls for observation in call.training}
    for call in trace.calls:
        for kind, observations in (
            ("training", call.training),
            ("recorded autograd", (call.autograd,) if call.autograd else ()),
            ("used batch statistics", call.batch_stats),
            ("drew random numbers", call.draws),
            ("unregistered", call.unregistered),
        ):
            for observation in observations:
                # A line that switched all modules is shown with the violation, not with each module.
                since = f"since {observation.since}" if observation.since and len(switches) > 1 else ""
                text = since if kind == "training" else observation.why
                yield observation.module.model, observation.module.path, (kind, text)
        for change in call.attributes:
            text = f"{change.attribute}: {change.before} -> {change.after}"
            yield change.module.model, change.module.path, ("changed", text)
    for tensor in trace.changes:
        owner, _, name = tensor.path.rpartition(".")
        yield tensor.model, owner, ("changed", f"{name}  {describe_change(tensor)}".strip())


def _tree(
    model: WatchedModel, marks: dict[str, list[Mark]], observed_types: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """Return the rows of a model, down to the depth at which they fit one screen."""
    types = dict(model.modules)
    nodes = {"": _Node(model.name, model.type, marks.get("", []))}

    def add(path: str) -> _Node:
        """Return the node of a path; create it and its parents if they are missing."""
        if path not in nodes:
            parent, _, name = path.rpartition(".")
            kind = types.get(path) or observed_types.get((model.name, path), "")
            nodes[path] = _Node(name, kind, marks.get(path, []))
            add(parent).children.append(nodes[path])
        return nodes[path]

    # The paths of unregistered modules are only in `marks`; they come last.
    for path in [*types, *marks]:
        add(path)
    depth = 1 + max(path.count(".") for path in nodes)
    row = _row([nodes[""]], depth)
    while _count_rows(row) > MAX_ROWS + 1 and depth > 1:
        depth -= 1
        row = _row([nodes[""]], depth)
    return row


def _row(group: Sequence[_Node], depth: int) -> dict[str, Any]:
    """Return the row of a module, with rows for those below it down to a depth, or one row for similar branches."""
    node, marks = group[0], [mark for node in group for mark in node.all_marks()]
    is_expanded = len(group) == 1 and bool(marks) and (depth > 0 or not node.children)
    types = {node.type for node in group}
    return {
        "name": node.name if len(group) == 1 else f"{node.name} … {group[-1].name}",
        "type": types.pop() if len(types) == 1 else "",
        "times": len(group),
        "modules": sum(len(node.branch()) for node in group),
        "marks": node.marks if is_expanded else _summarize(marks),
        "rows": [_row(group, depth - 1) for group in _groups(node)] if is_expanded else [],
    }


def _count_rows(row: dict[str, Any]) -> int:
    return 1 + sum(map(_count_rows, row["rows"]))


def _groups(node: _Node) -> list[list[_Node]]:
    """Group clean neighbors; if there are many children, also similar neighbors, and the rest beyond MAX_ROWS."""

    def key(child: _Node) -> object:
        marks = child.all_marks()
        if not marks or len(node.children) <= _MAX_CHILDREN:
            return id(child) if marks else ()
        return child.type, {kind for kind, _ in marks}

    groups = [list(group) for _, group in groupby(node.children, key)]
    if len(groups) > MAX_ROWS:
        groups = [*groups[: MAX_ROWS - 1], [child for group in groups[MAX_ROWS - 1 :] for child in group]]
    return groups


def _summarize(marks: list[Mark]) -> list[Mark]:
    """Return one mark per kind: the number of marks and the text of the first."""
    counts = Counter(kind for kind, _ in marks)
    firsts = dict(reversed(marks))
    nouns = {"changed": "tensor"}
    return [
        (kind, firsts[kind] if n == 1 else f"{plural(n, nouns.get(kind, 'module'))}: {firsts[kind]}".rstrip(": "))
        for kind, n in counts.items()
    ]
