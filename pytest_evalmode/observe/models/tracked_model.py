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

Died = Callable[["Model"], None]
"""Who is told of a model that dies."""


class Model:
    """A model of the window.  It is not kept alive: when it dies, it is judged by the tables that it leaves behind.

    They do hold its parts: one whose parts refer back to it, by a hook that is a method of its own, say, lives on until
    the end of the window.
    """

    def __init__(self, parts: modules.Parts, died: weakref.WeakMethod[Died], *, named: bool) -> None:
        module: nn.Module = parts[0][1]
        self.own_name = ""
        self.place = ""
        """Its path in a larger model that turned up later; not for one that was given a name of its own."""
        self.whole: Model | None = None
        """That larger model."""
        self.named = named
        self.type = modules.type_name(module)
        self.is_model = modules.is_model(parts)
        self.has_state = self.is_model or mode_dependence.has_mode(parts)
        """Whether what is not saved of it should stay as it is, too: a metric is there to count."""
        self.others: dict[int, tuple[str, Model]] = {}
        """The parts that are models of their own, by `id`, with their paths here."""
        self.inherited = False
        """Whether it is watched for what it was part of, which has died."""
        self.forwards = 0
        self.before: Snapshot | None = None
        self.tensors = 0
        self.bytes = 0
        self.dtypes: frozenset[str] = frozenset()
        self.outline: tuple[tuple[str, str], ...] = ()
        """Path and type of each module in it, where that is to be shown."""
        self.flags: flag_snapshots.Baseline | None = None
        """How a shared model was set, where that is asked for."""
        self.drift: Drift | None = None
        self.last: tuple[CodeType, int] | None = None
        """Where the model was last called from."""
        self.remains: modules.Remains | None = modules.remains(module)

        def die(_: object) -> None:
            tell = died()
            if tell is not None:
                tell(self)

        self.module = weakref.ref(module, die)

    @property
    def name(self) -> str:
        return self.own_name if self.whole is None else self.whole.name

    @property
    def prefix(self) -> str:
        """Its path in the largest model that holds it: that may have turned up last of several."""
        return "" if self.whole is None else ".".join(filter(None, (self.whole.prefix, self.place)))

    def path_of(self, name: str) -> str:
        """The path, in the largest model that holds this one, of what is called so here."""
        return ".".join(filter(None, (self.prefix, name)))

    def holder(self) -> nn.Module | modules.Remains | None:
        """Where to read the state: of the module, or after its death of what it left, until that is released."""
        for key in [key for key, (_, other) in self.others.items() if other.module() is None]:
            del self.others[key]  # another may be there by now
        module = self.module()
        return self.remains if module is None else module

    def parts(self) -> modules.Parts:
        """The same, and all beneath it but the parts that are models of their own."""
        holder = self.holder()
        return [] if holder is None else modules.walk(holder, self.others)

    def held(self) -> Snapshot | None:
        """What it was, the parts that are models of their own included."""
        if self.before is None:
            return None
        prints, passing = dict(self.before.prints), set(self.before.passing)
        for path, other in self.others.values():
            inner = other.held()
            if inner is not None:
                prints.update((f"{path}.{name}", print_) for name, print_ in inner.prints.items())
                passing.update(f"{path}.{name}" for name in inner.passing)
        return replace(self.before, prints=prints, passing=frozenset(passing))

    def is_unfinished(self) -> bool:
        """Whether a lazy tensor in it, or in a part that is a model of its own, has yet to be given its shape."""
        if self.before is not None and self.before.unfinished:
            return True
        return any(other.is_unfinished() for _, other in self.others.values())

    def remember(self, snapshot: Snapshot) -> None:
        if snapshot is self.before:
            return
        self.before = snapshot
        self.tensors = len(snapshot.prints) - len(snapshot.passing)
        self.bytes = snapshot.bytes
        dtypes = {print_.dtype for print_ in snapshot.prints.values()}
        self.dtypes = frozenset(str(dtype).removeprefix("torch.") for dtype in dtypes)

    def release(self) -> None:
        self.remains = None
        self.before = None
