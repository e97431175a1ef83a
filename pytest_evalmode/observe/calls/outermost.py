"""An outermost forward while it runs: who runs, what is to be seen of it, and what has been seen so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import nn

from pytest_evalmode.observe.calls.questions.attributes import Attributes
from pytest_evalmode.observe.calls.questions.inputs import Inputs
from pytest_evalmode.observe.models.watch import Model
from pytest_evalmode.observe.state.generators import HostState, State
from pytest_evalmode.trace import Finding


@dataclass(slots=True)
class Outermost:
    """An outermost forward while it runs."""

    model: Model
    owner: nn.Module
    """What was called, by `__call__` or by another method."""
    ran: nn.Module
    """What that ran first past its own `__call__`; else the same."""
    frame: FrameType
    called: tuple[CodeType, int] | None
    known: set[int]
    """The modules that are part of it."""
    newcomers: set[int]
    """Those that have become part of it since it began, for as long as it runs maybe: a parametrization's."""
    quiet: set[int]
    """Those of which, in eval mode and with grad mode off, there is nothing to see."""
    modules: int
    grad: bool
    start: State
    state: State
    inputs: tuple[Any, Any]
    around: Outermost | None = None
    """The outermost forward in which this model runs without being part of it: it was handed to that."""
    guests: dict[int, str] = field(default_factory=dict)
    """The paths of modules that run in it without being part of it."""
    hosts_model: bool = False
    """Whether one of them holds parameters."""
    pinned: list[nn.Module] = field(default_factory=list)
    """Them and their parts: one that died would leave its `id` to another."""
    training: dict[int, Finding] = field(default_factory=dict)
    autograd: Finding | None = None
    grad_stopped: bool = False
    batch_stats: dict[int, Finding] = field(default_factory=dict)
    draws: dict[int, Finding] = field(default_factory=dict)
    unseen: dict[int, set[int]] = field(default_factory=dict)
    """Of those that drew, the parts beneath them that may have: they are in training mode, and draw if they run."""
    entered: set[int] = field(default_factory=set)
    """The parts that may draw which were seen to run."""
    unregistered: list[Finding] = field(default_factory=list)
    before: Before | None = None
    lazy: set[int] = field(default_factory=set)
    """Modules that initialise their parameters in this very forward, at random."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a strict window reads before a forward."""

    inputs: Inputs
    attributes: list[Attributes]
    host: HostState
    hooks: dict[int, object]
