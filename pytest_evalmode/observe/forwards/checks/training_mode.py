"""Check for modules that ran in training mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import is_
from types import FrameType

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import CheckContext, ForwardCheck
from pytest_evalmode.observe.forwards.context import ForwardContext
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.observe.source import model_graphs
from pytest_evalmode.trace import Observation, Site


class _HashedOnce(tuple[Observation, ...]):
    """Observations that are the same in many forwards; their hash is computed once."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class TrainingModeCheck(ForwardCheck):
    """Check for modules in training mode that depend on the mode or hold parameters."""

    def begin(self) -> None:
        forward, tree = self.forward, self.forward.tree
        self.checked = set(tree.training)
        if not tree.training:
            return
        # The observations hold names and `train()` lines: they are reused until one of these may have changed.
        key = forward.model, self.context.watch.registry.name_version, self.context.mode_changes.change_count
        if tree.observations_key != key or forward.cause is not None:
            note_training_modules(self.context, forward, forward.parts, forward.cause)
            tree.training_observations, tree.observations_key = forward.training, key
            tree.cause_searched, tree.last_observations = set(), ()
            tree.settled = frozenset()
        forward.training, forward.settled = tree.training_observations.copy(), tree.settled
        if forward.training and tree.opaque:
            forward.skippable -= {id(forward.parts[i]) for i in tree.opaque}

    def add_modules(self, parts: list[nn.Module], cause: Site | None, why: str) -> None:
        note_training_modules(self.context, self.forward, parts, cause, why)

    def enter(self, module: nn.Module, frame: FrameType) -> None:
        forward, tree, key = self.forward, self.forward.tree, id(module)
        if (key in tree.cause_searched and key in self.checked) or not modules.training_flag(module):
            return
        self._check(module)
        observation = forward.training.get(key)
        if observation is None or observation.cause is not None or module is forward.root or key in tree.cause_searched:
            return
        tree.cause_searched.add(key)
        cause = self.context.user_lines.find_line_inside(frame.f_back, forward.frame)
        if cause is not None:
            observation = forward.training[key] = replace(observation, cause=cause)
            if key in tree.training_observations:
                tree.training_observations[key] = observation

    def leave(self, module: nn.Module, output: object, frame: FrameType) -> None:
        if modules.training_flag(module):
            self._check(module)  # a hook or the forward itself may have set the flag

    def end(self, output: object) -> Mapping[str, object]:
        tree, observations = self.forward.tree, self.forward.training.values()
        if len(observations) != len(tree.last_observations) or not all(map(is_, observations, tree.last_observations)):
            tree.last_observations = _HashedOnce(observations)
        elif tree.training and not tree.settled:
            # Two forwards in a row gave the same result, so nothing new is expected about most of these modules.  Not
            # settled: modules that may draw in eval mode too, that depend on the mode, or whose line may yet be found.
            dropouts = tree.may_draw & tree.skippable
            unsettled = {
                key
                for key, observation in tree.training_observations.items()
                if (observation.module.mode_dependent and key not in dropouts)
                or not (observation.cause or key in tree.cause_searched)
            }
            tree.settled = tree.training - (tree.may_draw - dropouts) - unsettled
        all_training = bool(observations and modules.training_flag(self.forward.owner))
        return {"training": tree.last_observations, "all_training": all_training}

    def _check(self, module: nn.Module) -> None:
        if id(module) not in self.checked:
            self.checked.add(id(module))
            note_training_modules(self.context, self.forward, [module])


def note_training_modules(
    context: CheckContext,
    forward: ForwardContext,
    parts: list[nn.Module],
    cause: Site | None = None,
    why: str = "",
    *,
    mode_dependent: bool | None = None,
) -> None:
    """Add modules in training mode to `forward.training`, if they depend on the mode or hold parameters.

    `cause` is the line in the model that ran them, `why` the reason why `eval()` does not reach them.  Whether they are
    `mode_dependent` is read from their code by default.
    """
    in_training = [part for part in parts if modules.training_flag(part)]
    if not in_training:
        return
    # An exported graph always says `training=True`: that means nothing.
    exported = {id(p) for part in parts if model_graphs.is_exported(part) for p in modules.all_modules(part)}
    for part in in_training:
        if id(part) not in exported:
            depends = mode_dependence.is_mode_dependent(part) if mode_dependent is None else mode_dependent
            if depends or (modules.is_layer_with_weights(part) and id(part) not in forward.late_submodules):
                info = replace(forward.module_info(part), mode_dependent=depends)
                since = context.mode_changes.line_of_training(part)
                forward.training.setdefault(id(part), Observation(info, cause, why, since=since))
