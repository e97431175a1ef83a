"""Facts about one guarded window: the observers record them, and the rules read them.

Frozen dataclasses that need neither torch nor pytest, so that the test of a rule can build them by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Site:
    """A line of user code; `file` is relative to pytest's rootdir."""

    file: str
    line: int
    source: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of a model; `path` is its qualified name, empty for the model itself."""

    model: str
    path: str
    type: str
    mode_dependent: bool = False
    """Whether the module's forward behaves differently in training mode."""
    changes_result: bool = False
    """Whether it is a norm with running statistics or a dropout with p > 0: training mode changes its result."""

    code: str = ""
    """The path as Python code, if that is not `.path`: `[2].conv`."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.path}" if self.path else self.model

    @property
    def suffix(self) -> str:
        """The code to append to an expression for the model: `.conv`, `[2].conv`, or nothing for the model itself."""
        return self.code or (f".{self.path}" if self.path else "")

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


@dataclass(frozen=True, slots=True)
class Observation:
    """One module that a check reported during a forward, and the user's line at fault."""

    module: ModuleInfo
    cause: Site | None = None
    """The innermost line of user code inside the model."""
    why: str = ""
    enabled_by_forward: bool = False
    """Autograd only: whether the forward enabled grad mode itself."""
    recorded: bool = True
    """Autograd only: whether anything was recorded; otherwise grad mode was only on."""
    training: bool = False
    """Random draws only: whether the module was in training mode."""
    is_graph: bool = False
    """Whether the module is an exported or traced graph, which keeps the modes it was created with."""
    since: Site | None = None
    """The line that switched the module to training mode, if it is known."""
    switched_in_window: bool = False
    """Whether that line ran in the window."""
    switched_in_forward: bool = False
    """Whether the module was in eval mode, or did not exist, when the forward began."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A plain attribute of a module that changed during a forward."""

    module: ModuleInfo
    attribute: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.module.name}.{self.attribute}"


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """An outermost forward that a rule may report; identical calls are counted in `count`."""

    ran: ModuleInfo
    """The model."""
    at: Site | None
    """The line of user code that called it, in the test's file if there is one."""
    modules: int
    """Number of modules in the model."""
    through: Site | None = None
    """The innermost line of user code outside the model, if that is not `at`."""
    by: ModuleInfo | None = None
    """The submodule that ran, if a method of the model other than `__call__` called it (`model.encode(x)`)."""
    expression: str = ""
    """Python code for what ran, at the user's line: `net.encoder`.  Empty if it is unknown."""
    exported: bool = False
    """Whether torch ran the forward to create a graph, which keeps the modes of its modules."""
    graphs: frozenset[str] = frozenset()
    """Names of the created graphs that later ran as models."""
    training: tuple[Observation, ...] = ()
    """Modules in training mode that depend on the mode or train parameters."""
    all_training: bool = False
    """Whether the model itself was in training mode: `eval()` was not called on it, or was undone."""
    returned_losses: bool = False
    """Whether a model in training mode that reads its mode returned only single numbers, as detectors do."""
    autograd: Observation | None = None
    batch_stats: tuple[Observation, ...] = ()
    """Batch norms in eval mode that used the batch's own statistics."""
    draws: tuple[Observation, ...] = ()
    """Modules in eval mode that drew from a global random generator."""
    unregistered: tuple[Observation, ...] = ()
    """Modules with state or mode-dependent behavior that ran inside the model without being submodules."""
    inputs: tuple[str, ...] = ()
    """Arguments that the forward changed in place."""
    attributes: tuple[AttributeChange, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A parameter or buffer that changed."""

    model: str
    path: str
    what: Literal["values", "shape", "dtype", "device", "added", "removed"]
    elements: int | None = None
    """Number of elements that changed."""
    numel: int | None = None
    """Number of elements of the tensor."""
    max_abs: float | None = None
    last_forward: Site | None = None
    """The model's last forward before the change was first seen."""
    first_forward: Site | None = None
    written: Literal["", "before", "inside", "after"] = ""
    """Whether it changed before, inside or after the model's first forward; empty if that is unknown."""
    written_at: Site | None = None
    """The line in the model's forward that writes to it, if the change happened there."""
    seen_late: bool = False
    """Whether the model was not watched before its first forward, so that a change before that is unknown."""
    persistent: bool = True
    """Whether `state_dict()` saves it."""
    buffer: bool = False
    """Whether it is a buffer, which a forward in training mode may change."""
    frozen: bool = False
    """Whether it changed during a pause, in a module that `paused(frozen=...)` names."""
    before_and_after: str = ""
    """The shapes, dtypes or devices: `(4,) -> (8,)`."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.path}"


@dataclass(frozen=True, slots=True)
class ModelOperation:
    """A call outside a forward that trained, set or differentiated models: `step()`, `half()`, `backward()`."""

    models: tuple[str, ...]
    name: str
    """For example `SGD.step()`, `load_state_dict()` or `backward()`."""
    at: Site | None


@dataclass(frozen=True, slots=True)
class Load:
    """A `load_state_dict(strict=False)` with missing or unexpected keys that no other load of the window filled.

    A library's load, of an adapter for example, leaves the rest of the model alone: it counts only if it matched
    nothing.
    """

    model: ModuleInfo
    at: Site | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class Hooks(dict[int, str]):
    """The names of the hooks in one table of a module, by their keys."""

    def __str__(self) -> str:
        return ", ".join(f"{name} #{key}" for key, name in self.items()) or "none"


@dataclass(frozen=True, slots=True)
class Part:
    """A submodule or tensor; one that replaces another differs from it, although both have the same text."""

    key: int
    text: str

    def __str__(self) -> str:
        return self.text


FlagValue = bool | str | Hooks | Part | None
"""Whether something is on, a value of any other type as text, hooks, a submodule or tensor, or None for no gradient."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A change that persists after the test; `model` is None for torch's global state."""

    model: str | None
    name: str
    before: FlagValue
    after: FlagValue
    at: Site | None = None
    """The line that made the change, if known."""
    suspended: bool = False
    """Whether that line is a `with` around a `yield` at which a generator is suspended."""

    def is_inside(self, other: Leak) -> bool:
        """Return whether this is a flag of a module that the other leak replaced."""
        return self.model == other.model and self.name.startswith(f"{other.name}.")


@dataclass(frozen=True, slots=True)
class Drift:
    """A change of a shared model or, if `model` is None, of torch's global state since the last guarded test."""

    model: str | None
    changes: tuple[TensorChange, ...] | tuple[Leak, ...]
    last_seen_by: str
    """The last guarded test that saw the old state."""
    between: tuple[str, ...]
    """Unguarded tests and fixtures that ran since, the most likely cause first."""
    changed_by: tuple[str, ...] = ()
    """Those of them that made the change, if known."""


@dataclass(frozen=True, slots=True)
class LockChange:
    """A difference from a lock entry, with its diagnosis."""

    kind: str
    """`model`, `inputs`, `preprocessing` or `outputs`."""
    name: str
    headline: str
    finding: str = ""
    """The diagnosis in full, if it is longer than the headline."""
    at: Site | None = None
    file: str = ""
    """The lock file."""
    details: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""
    pictures: Mapping[str, object] = field(default_factory=dict)
    """Images for the HTML report, by path in the batch."""


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model of the window, with its size and the number of its forwards."""

    name: str
    type: str
    tensors: int
    bytes: int
    forwards: int
    dtypes: tuple[str, ...] = ()
    """Dtypes of its parameters and buffers, for example `float32`."""
    modules: tuple[tuple[str, str], ...] = ()
    """Path and type of each of its modules, if a report shows them."""


@dataclass(frozen=True, slots=True)
class Event:
    """A mode switch or a forward; a repeated one is counted in `count`."""

    what: str
    """`train()`, `eval()` or `forward`."""
    model: str
    at: Site | None
    count: int = 1


def _join_tuples(values: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(values))


def _join_unique(values: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(values)))


def _join_changes(values: Iterable[tuple[TensorChange, ...]]) -> tuple[TensorChange, ...]:
    """Keep the first change of each tensor."""
    first: dict[tuple[str, str], TensorChange] = {}
    for change in chain.from_iterable(values):
        first.setdefault((change.model, change.path), change)
    return tuple(first.values())


def _join_models(values: Iterable[tuple[WatchedModel, ...]]) -> tuple[WatchedModel, ...]:
    """Keep each model once, as last seen, with its forwards of all segments."""
    models: dict[str, WatchedModel] = {}
    for model in chain.from_iterable(values):
        before = models[model.name].forwards if model.name in models else 0
        models[model.name] = replace(model, forwards=before + model.forwards)
    return tuple(models.values())


def _join_leaks(values: Iterable[tuple[Leak, ...]]) -> tuple[Leak, ...]:
    """Join the leaks of consecutive segments; a value that ends as it began is not a leak."""
    joined: dict[tuple[str | None, str], Leak] = {}
    for leak in chain.from_iterable(values):
        key = leak.model, leak.name
        joined[key] = replace(leak, before=joined[key].before) if key in joined else leak
    return tuple(leak for leak in joined.values() if leak.before != leak.after)


def _join_sets(values: Iterable[frozenset[Any]]) -> frozenset[Any]:
    return frozenset().union(*values)


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that the observers recorded in a guarded window."""

    models: tuple[WatchedModel, ...] = field(default=(), metadata={"join": _join_models})
    calls: tuple[ForwardCall, ...] = ()
    changes: tuple[TensorChange, ...] = field(default=(), metadata={"join": _join_changes})
    steps: tuple[ModelOperation, ...] = field(default=(), metadata={"join": _join_unique})
    """Optimizer steps."""
    writes: tuple[ModelOperation, ...] = field(default=(), metadata={"join": _join_unique})
    """Methods that set or convert all tensors of a module: `load_state_dict()`, `half()`."""
    gradients: tuple[ModelOperation, ...] = field(default=(), metadata={"join": _join_unique})
    """Calls that computed gradients from a graph: for each model the first `backward()` and `autograd.grad()`."""
    names: frozenset[tuple[str, str]] = field(default=frozenset(), metadata={"join": _join_sets})
    """Model and path of every module and tensor, if an exemption names some."""
    loads: tuple[Load, ...] = ()
    leaks: tuple[Leak, ...] = field(default=(), metadata={"join": _join_leaks})
    drifts: tuple[Drift, ...] = ()
    locks: tuple[LockChange, ...] = ()
    unused_exemptions: tuple[str, ...] = ()
    """Exemptions that matched nothing, as declared: `train="drop"`."""
    needs_forward: bool = field(default=False, metadata={"join": any})
    """Whether a marked test ran to its end, so that it should have run a model."""
    forwards: int = field(default=0, metadata={"join": sum})
    """Number of outermost forwards of models."""
    events: tuple[Event, ...] = ()
    """Mode switches and forwards in order, if a report shows them."""


_JOINS: tuple[tuple[str, Callable[[Iterable[Any]], Any]], ...] = tuple(
    (each.name, each.metadata.get("join", _join_tuples)) for each in fields(Trace)
)


def join_traces(traces: Sequence[Trace]) -> Trace:
    """Return one trace for several consecutive ones; a field without a join of its own is concatenated."""
    return Trace(**{name: join(getattr(trace, name) for trace in traces) for name, join in _JOINS})
