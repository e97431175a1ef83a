"""Check for modules that ran in training mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import is_
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.autograd import grad_flags, is_trainable
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.forwards.unregistered_modules import Arrival
from pytest_evalmode.observe.model_code import model_graphs
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import Observation, Site


@dataclass(slots=True, eq=False)
class _Cache:
    """The observations about the modules of a tree that are in training mode, valid while `key` is equal."""

    key: object
    observations: dict[int, Observation]
    traced: set[int] = field(default_factory=set)
    """Modules whose calling line was searched already."""
    result: tuple[Observation, ...] = ()
    """What the last forward reported."""
    settled: frozenset[int] = frozenset()


class TrainingModeCheck(ForwardCheck):
    """Check for modules in training mode that depend on the mode or train parameters."""

    settled: frozenset[int] = frozenset()
    """Modules of which nothing new is expected; once autograd is known to record, only their draws matter."""

    def begin(self) -> None:
        forward, tree = self.forward, self.forward.tree
        # The observations hold names and `train()` lines: they are reused until one of these may have changed.
        key = (
            forward.model,
            self.window.watch.registry.name_version,
            self.window.mode_changes.change_count,
            forward.cause,
            grad_flags(forward) if tree.training else None,  # whether the mode matters depends on them
        )
        cache = tree.caches.get(TrainingModeCheck)
        if cache is None or cache.key != key:
            observations = find_training_modules(forward, forward.parts, forward.cause) if tree.training else {}
            cache = tree.caches[TrainingModeCheck] = _Cache(key, observations)
        self.cache: _Cache = cache
        self.settled = cache.settled
        forward.training.update(cache.observations)
        if forward.training:
            self.unskippable = {id(forward.parts[i]) for i in tree.opaque}

    def add_modules(self, arrival: Arrival) -> None:
        self._add(arrival.parts, arrival.cause, arrival.why)  # fresh modules are in training mode

    def enter(self, module: nn.Module, frame: FrameType) -> None:
        key, training, cache = id(module), self.forward.training, self.cache
        if key in cache.traced or not modules.training_flag(module):
            return
        if key in self.forward.tree.training:
            cache.traced.add(key)
        else:
            self._add([module])
        if key in training and training[key].cause is None and module is not self.forward.root:
            cause = self.window.user_lines.find_line(frame.f_back, self.forward.frame)
            training[key] = replace(training[key], cause=cause)
            if key in cache.observations:
                cache.observations[key] = training[key]

    def leave(self, module: nn.Module, output: object, frame: FrameType) -> None:
        if id(module) not in self.forward.tree.training and modules.training_flag(module):
            self._add([module])  # a hook or the forward itself may have set the flag

    def end(self, output: object) -> Mapping[str, object]:
        cache, tree, observations = self.cache, self.forward.tree, self.forward.training.values()
        if len(observations) != len(cache.result) or not all(map(is_, observations, cache.result)):
            cache.result = tuple(observations)
        elif tree.training and not cache.settled:
            # Two forwards in a row gave the same result.  Not settled: modules that may draw in eval mode too, that
            # depend on the mode, or whose line may yet be found.
            dropouts = tree.may_draw & tree.skippable
            unsettled = {
                key
                for key, observation in cache.observations.items()
                if (observation.module.mode_dependent and key not in dropouts)
                or not (observation.cause or key in cache.traced)
            }
            cache.settled = tree.training - (tree.may_draw - dropouts) - unsettled
        root = self.forward.training.get(id(self.forward.root))
        returned_losses = root is not None and root.module.mode_dependent and _are_single_numbers(output)
        return {"training": cache.result, "returned_losses": returned_losses}

    def _add(self, parts: list[nn.Module], cause: Site | None = None, why: str = "") -> None:
        training = self.forward.training
        added = find_training_modules(self.forward, parts, cause, why)
        training.update({key: replace(each, switched_in_forward=True) for key, each in added.items()} | training)


def find_training_modules(
    forward: ForwardContext, parts: list[nn.Module], cause: Site | None = None, why: str = ""
) -> dict[int, Observation]:
    """Return the modules in training mode, by `id`, that depend on the mode or train parameters.

    `cause` is the line in the model that ran them, `why` the reason why `eval()` does not reach them.
    """
    in_training = [part for part in parts if modules.training_flag(part)]
    # An exported graph always says `training=True`: that means nothing.
    exported = model_graphs.exported_ids(parts) if in_training else set()
    observations: dict[int, Observation] = {}
    for part in in_training:
        if id(part) not in exported:
            depends, late = mode_dependence.is_mode_dependent(part), forward.late_modules.get(id(part))
            is_registered_late = late is not None and late.path is None
            # A bare `nn.Module`, as fx makes them, cannot run.
            trains = type(part) is not nn.Module and not is_registered_late and is_trainable(part)
            if depends or trains:
                observations[id(part)] = observe_training(forward, part, cause, why, mode_dependent=depends)
    return observations


def _are_single_numbers(output: object) -> bool:
    """Return whether an output is a tensor of one element, or a dict, list or tuple of such tensors."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else [output]
    return bool(values) and all(is_tensor(value) and value.dim() == 0 for value in values)


def observe_training(
    forward: ForwardContext, module: nn.Module, cause: Site | None = None, why: str = "", *, mode_dependent: bool
) -> Observation:
    """Return the observation that a module is in training mode, with the line that switched it."""
    changes_result = mode_dependent and mode_dependence.changes_result(module)
    info = replace(forward.module_info(module), mode_dependent=mode_dependent, changes_result=changes_result)
    since, in_window = forward.window.mode_changes.line_of_training(module)
    return Observation(info, cause, why, since=since, switched_in_window=in_window)
