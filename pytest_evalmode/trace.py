"""The facts of one guarded window: what the observers record and the rules judge.

Plain frozen values without behaviour: no torch, no pytest.  A test of a rule builds them by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Site:
    """A line of user code; `file` is relative to the root that the user sees."""

    file: str
    line: int
    source: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of a model; the model itself has the empty `path`."""

    model: str
    path: str
    type: str
    mode_dependent: bool = False
    """Whether its forward depends on `self.training`."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.path}" if self.path else self.model

    def __str__(self) -> str:
        return f"{self.name} ({self.type})"


@dataclass(frozen=True, slots=True)
class Observation:
    """Something about one module of a forward, the user's line in the model that led to it, and how it came about."""

    module: ModuleInfo
    cause: Site | None = None
    why: str = ""
    enabled_by_forward: bool = False
    """Of autograd: whether the forward turned it on by itself."""
    training: bool = False
    """Of a draw: whether the module was in training mode."""
    is_graph: bool = False
    """Whether the module is a graph, which keeps the modes in which it was made."""
    since: Site | None = None
    """The line that switched the module to training mode, if that was in the window."""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A plain attribute of a module that a forward changed."""

    part: ModuleInfo
    attribute: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.part.name}.{self.attribute}"


@dataclass(frozen=True, slots=True)
class ForwardCall:
    """An outermost forward that has something to say; equal calls are counted, not repeated."""

    ran: ModuleInfo
    at: Site | None
    modules: int
    through: Site | None = None
    """The innermost line outside the model, where `at` is that of the test that led to it."""
    by: ModuleInfo | None = None
    """The part that ran, where a method of the model other than `__call__` called it: `model.encode(x)`, say."""
    exported: bool = False
    """Whether torch ran it to make a graph of it, which keeps the modes."""
    graphs: frozenset[str] = frozenset()
    """The names of those graphs that ran as models."""
    training: tuple[Observation, ...] = ()
    """Modules in training mode that depend on the mode or hold parameters."""
    all_training: bool = False
    """Whether the model itself was, so that nobody had called its `eval()`."""
    autograd: Observation | None = None
    batch_stats: tuple[Observation, ...] = ()
    """Batch norms in eval mode that used the statistics of the batch."""
    draws: tuple[Observation, ...] = ()
    """Modules in eval mode that moved a global random generator."""
    unregistered: tuple[Observation, ...] = ()
    """Modules with state or a mode that ran inside without being submodules."""
    inputs: tuple[str, ...] = ()
    """Arguments that the forward changed in place."""
    attributes: tuple[AttributeChange, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A parameter or persistent buffer that is not what it was."""

    model: str
    path: str
    what: str
    """`values`, `shape (4,) -> (8,)`, `dtype ...`, `device ...`, `added` or `removed`."""
    elements: int | None = None
    numel: int | None = None
    max_abs: float | None = None
    last_forward: Site | None = None
    """The last forward of the model before the change was first seen."""
    persistent: bool = True
    """Whether `state_dict()` saves it."""
    buffer: bool = False
    """Whether it is a buffer, which a forward in training mode may change."""

    @property
    def name(self) -> str:
        return f"{self.model}.{self.path}"


@dataclass(frozen=True, slots=True)
class ModelOperation:
    """A call by which a model was trained or written to, or the graph of its forward was used."""

    models: tuple[str, ...]
    name: str
    """`SGD.step()`, or `backward()`."""
    at: Site | None


@dataclass(frozen=True, slots=True)
class Load:
    """A `load_state_dict(strict=False)` that left something over, but for what another load of the window filled."""

    model: ModuleInfo
    at: Site | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    by_user: bool = True
    """Whether it stands in code of the user's own, not in a library's."""
    matched: int = 1
    """How many of the keys that it was given the model has."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Something that the test left behind otherwise than it found it; without a model, of torch's global state."""

    model: str | None
    name: str
    before: str
    after: str
    at: Site | None = None
    """The line that did it, where that is known."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A shared model that is not what the last guarded test left."""

    model: str
    changes: tuple[TensorChange, ...]
    last_seen_by: str
    """The last guarded test that saw the old state."""
    between: tuple[str, ...]
    """What ran since, unguarded, likeliest first."""


@dataclass(frozen=True, slots=True)
class GlobalDrift:
    """Torch's global state is not what the last guarded test left."""

    changes: tuple[Leak, ...]
    last_seen_by: str
    """The last guarded test that saw the old state."""
    between: tuple[str, ...]
    """The tests that ran since, unguarded, the last one first."""
    changed_by: tuple[str, ...] = ()
    """Those of them as which it changed, where that is known."""


@dataclass(frozen=True, slots=True)
class LockChange:
    """Something that is not what was locked, with the diagnosis."""

    kind: str
    """`model`, `inputs`, `preprocessing` or `outputs`."""
    name: str
    headline: str
    finding: str = ""
    """More of it than has room in a headline."""
    at: Site | None = None
    file: str = ""
    """Where it is locked."""
    details: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""
    pictures: Mapping[str, object] = field(default_factory=dict)
    """What a page shows of it, by the path in a batch."""


@dataclass(frozen=True, slots=True)
class WatchedModel:
    """A model of the window, with what was read of it and how often it ran."""

    name: str
    type: str
    tensors: int
    bytes: int
    forwards: int
    dtypes: tuple[str, ...] = ()
    """Of its parameters and buffers: `float32`, say."""
    modules: tuple[tuple[str, str], ...] = ()
    """Path and type of each module in it, where that is to be shown."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a window: the same again, until a mode was switched, is counted."""

    what: str
    """`train()`, `eval()` or `forward`."""
    model: str
    at: Site | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """All that a guarded window saw."""

    models: tuple[WatchedModel, ...] = ()
    calls: tuple[ForwardCall, ...] = ()
    changes: tuple[TensorChange, ...] = ()
    steps: tuple[ModelOperation, ...] = ()
    """Steps of optimizers."""
    writes: tuple[ModelOperation, ...] = ()
    """Methods that set or convert all tensors of a module: `load_state_dict()`, `half()`."""
    gradients: tuple[ModelOperation, ...] = ()
    """Graphs that were asked for gradients."""
    names: frozenset[tuple[str, str]] = frozenset()
    """The modules and tensors there were, by model and path, where exemptions name some."""
    loads: tuple[Load, ...] = ()
    leaks: tuple[Leak, ...] = ()
    drifts: tuple[Drift, ...] = ()
    global_drifts: tuple[GlobalDrift, ...] = ()
    locks: tuple[LockChange, ...] = ()
    unused_exemptions: tuple[str, ...] = ()
    """Exemptions that nothing needed, as they were declared: `train="drop"`."""
    needs_forward: bool = False
    """Whether a test was marked, and ran to its end, so that it should have run a model."""
    forwards: int = 0
    """The outermost forwards of models."""
    events: tuple[Event, ...] = ()
    """What happened in their order, where that is to be shown."""
