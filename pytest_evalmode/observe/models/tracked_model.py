"""A model of a window: what it is called, and what it held."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from types import CodeType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.snapshot import Snapshot
from pytest_evalmode.trace import Drift

Died = Callable[["TrackedModel"], None]
"""Who is told of a model that dies."""


class TrackedModel:
    """A model of the window.  It is not kept alive: when it dies, it is judged by the tables that it leaves behind.

    They do hold its parts: one whose parts refer back to it, by a hook that is a method of its own, say, lives on until
    the end of the window.
    """

    def __init__(self, parts: modules.NamedModules, died: weakref.WeakMethod[Died], *, named: bool) -> None:
        module: nn.Module = parts[0][1]
        self.own_name = ""
        self.path_in_parent = ""
        """Its path in a larger model that turned up later; not for one that was given a name of its own."""
        self.parent: TrackedModel | None = None
        """That larger model."""
        self.is_named = named
        self.type = modules.type_name(module)
        self.is_model = modules.is_model(parts)
        self.checks_unsaved_state = self.is_model or mode_dependence.has_mode_dependent_part(parts)
        """Whether what is not saved of it should stay as it is, too: a metric is there to count."""
        self.submodels: dict[int, tuple[str, TrackedModel]] = {}
        """The parts that are models of their own, by `id`, with their paths here."""
        self.is_survivor = False
        """Whether it is watched for what it was part of, which has died."""
        self.forwards = 0
        self.snapshot: Snapshot | None = None
        self.tensors = 0
        self.bytes = 0
        self.dtypes: frozenset[str] = frozenset()
        self.outline: tuple[tuple[str, str], ...] = ()
        """Path and type of each module in it, where that is to be shown."""
        self.flags: flag_snapshots.FlagTracker | None = None
        """How a shared model was set, where that is asked for."""
        self.drift: Drift | None = None
        self.last_call: tuple[CodeType, int] | None = None
        """Where the model was last called from."""
        self.remains: modules.ModuleTables | None = modules.tables_of(module)

        def die(_: object) -> None:
            tell = died()
            if tell is not None:
                tell(self)

        self.module = weakref.ref(module, die)

    @property
    def name(self) -> str:
        return self.own_name if self.parent is None else self.parent.name

    @property
    def prefix(self) -> str:
        """Its path in the largest model that holds it: that may have turned up last of several."""
        return "" if self.parent is None else ".".join(filter(None, (self.parent.prefix, self.path_in_parent)))

    def path_of(self, name: str) -> str:
        """The path, in the largest model that holds this one, of what is called so here."""
        return ".".join(filter(None, (self.prefix, name)))

    def state_root(self) -> nn.Module | modules.ModuleTables | None:
        """Where to read the state: of the module, or after its death of what it left, until that is released."""
        for key in [key for key, (_, other) in self.submodels.items() if other.module() is None]:
            del self.submodels[key]  # another may be there by now
        module = self.module()
        return self.remains if module is None else module

    def parts(self) -> modules.NamedModules:
        """The same, and all beneath it but the parts that are models of their own."""
        holder = self.state_root()
        return [] if holder is None else modules.walk(holder, self.submodels)

    def full_snapshot(self) -> Snapshot | None:
        """What it was, the parts that are models of their own included."""
        if self.snapshot is None:
            return None
        prints, passing = dict(self.snapshot.fingerprints), set(self.snapshot.non_persistent)
        for path, other in self.submodels.values():
            inner = other.full_snapshot()
            if inner is not None:
                prints.update((f"{path}.{name}", print_) for name, print_ in inner.fingerprints.items())
                passing.update(f"{path}.{name}" for name in inner.non_persistent)
        return replace(self.snapshot, fingerprints=prints, non_persistent=frozenset(passing))

    def has_uninitialized(self) -> bool:
        """Whether a lazy tensor in it, or in a part that is a model of its own, has yet to be given its shape."""
        if self.snapshot is not None and self.snapshot.has_uninitialized:
            return True
        return any(other.has_uninitialized() for _, other in self.submodels.values())

    def set_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot is self.snapshot:
            return
        self.snapshot = snapshot
        self.tensors = len(snapshot.fingerprints) - len(snapshot.non_persistent)
        self.bytes = snapshot.bytes
        dtypes = {print_.dtype for print_ in snapshot.fingerprints.values()}
        self.dtypes = frozenset(str(dtype).removeprefix("torch.") for dtype in dtypes)

    def release(self) -> None:
        self.remains = None
        self.snapshot = None
