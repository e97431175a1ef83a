"""A watched model: its name, its last snapshot, and its relation to larger models."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Literal

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.modules import NamedModules
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Drift, Site, WatchedModel

OnDeath = Callable[["TrackedModel"], None]
"""Called when a model is garbage-collected."""


class TrackedModel:
    """A model that a window watches, with a weak reference to it, and its tables to compare the state when it dies."""

    def __init__(self, parts: NamedModules, on_death: weakref.WeakMethod[OnDeath], *, named: bool) -> None:
        module: nn.Module = parts[0][1]
        self.own_name = ""
        self.path_in_parent = ""
        """Its path in a larger model that was seen later; empty for a model that was given a name."""
        self.parent: TrackedModel | None = None
        """That larger model."""
        self.is_named = named
        self.type = modules.type_name(module)
        self.is_model = modules.is_model(parts)
        self.checks_unsaved_state = self.is_model or not modules.is_metric(module)
        """Whether to report changes of state that `state_dict()` does not save.  False for a metric: it must change."""
        self.submodels: dict[int, tuple[str, TrackedModel]] = {}
        """The submodules that are tracked as models of their own, by `id`, with their paths in this one."""
        self.is_survivor = False
        """Whether it was part of a model that has died, and is watched for that reason."""
        self.forwards = 0
        self.snapshot: Snapshot | None = None
        self.tensors = 0
        self.bytes = 0
        self.dtypes: frozenset[str] = frozenset()
        self.outline: tuple[tuple[str, str], ...] = ()
        """Path and type of each module in it, if a report shows them."""
        self.flags: flag_snapshots.FlagTracker | None = None
        """The flags of a shared model, under the strict rules."""
        self.drift: Drift | None = None
        self.last_call: tuple[CodeType, int] | None = None
        """The code and line that called the model last."""
        self.dates: dict[str, Literal["", "before", "inside", "after"]] = {}
        """When some small tensors changed, relative to the first forward; "after" if they had not until it ended."""
        self.write_lines: dict[str, Site | None] = {}
        """The lines in the model's code that wrote to the tensors that changed inside the first forward."""
        self.seen_late = False
        """Whether its state was first read when its first forward began."""
        self.first_forward: Literal["pending", "running", "ended"] = "pending"
        self.first_call: tuple[CodeType, int] | None = None
        """The code and line that called the model first."""
        self.tables: modules.ModuleTables | None = modules.tables_of(module)

        def die(_: object) -> None:
            callback = on_death()
            if callback is not None:
                callback(self)

        self.module = weakref.ref(module, die)

    @property
    def name(self) -> str:
        return self.own_name if self.parent is None else self.parent.name

    @property
    def prefix(self) -> str:
        """Its path in the largest model that contains it."""
        return "" if self.parent is None else ".".join(filter(None, (self.parent.prefix, self.path_in_parent)))

    def path_of(self, name: str) -> str:
        """Return the path of one of its modules or tensors in the largest model that contains this one."""
        return ".".join(filter(None, (self.prefix, name)))

    def state_root(self) -> nn.Module | modules.ModuleTables | None:
        """Return the object to read the state from: the module, or its tables once it has died, until `release()`."""
        for key in [key for key, (_, other) in self.submodels.items() if other.module() is None]:
            del self.submodels[key]  # its id may be in use again
        module = self.module()
        return self.tables if module is None else module

    def parts(self) -> NamedModules:
        """Return the model and its submodules with their paths, without those of its submodels."""
        root = self.state_root()
        return [] if root is None else modules.walk(root, self.submodels)

    def full_snapshot(self) -> Snapshot | None:
        """Return the last snapshot, with those of its submodels."""
        if self.snapshot is None:
            return None
        fingerprints, non_persistent = dict(self.snapshot.fingerprints), set(self.snapshot.non_persistent)
        for path, other in self.submodels.values():
            inner = other.full_snapshot()
            if inner is not None:
                fingerprints.update((f"{path}.{name}", fingerprint) for name, fingerprint in inner.fingerprints.items())
                non_persistent.update(f"{path}.{name}" for name in inner.non_persistent)
        return Snapshot(fingerprints, frozenset(non_persistent))

    def has_uninitialized(self) -> bool:
        """Return whether it, or one of its submodels, had a lazy tensor without a shape when it was last read."""
        if self.snapshot is not None and self.snapshot.has_uninitialized:
            return True
        return any(other.has_uninitialized() for _, other in self.submodels.values())

    def set_snapshot(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.tensors, self.bytes, self.dtypes = len(snapshot.saved), snapshot.bytes, snapshot.dtypes

    def to_fact(self, parts: Sequence[TrackedModel]) -> WatchedModel:
        """Return what the report says about it; `parts` are the model itself and its submodels."""
        return WatchedModel(
            self.name,
            self.type,
            sum(part.tensors for part in parts),
            sum(part.bytes for part in parts),
            sum(part.forwards for part in parts),
            tuple(sorted(frozenset().union(*(part.dtypes for part in parts)))),
            self.outline,
        )

    def release(self) -> None:
        self.tables = None
        self.snapshot = None
