"""The models that outlive a test: how they were set, and whether they are what the last test left."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.trace import Drift, Leak


class SharedModels:
    """Those of a window's models that it was handed from outside; asked under the strict rules."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def add(self, module: nn.Module, history: SessionHistory | None) -> None:
        """Watch a model that outlives the test: how it is set, and, with a history, what it was before."""
        model = self._watch.add(module)
        module = modules.unwrap(module)
        if model.flags is None and model.module() is module:
            self._note_flags(model)
            now = model.full_snapshot()
            if history is not None and now is not None:
                model.drift = history.find_drift(module, model.name, now)

    def _note_flags(self, model: TrackedModel) -> None:
        """How a model is set, and the parts of it that are models of their own."""
        module = model.module()
        if module is not None and model.flags is None:
            flags = flag_snapshots.read_model_flags(module, model.submodels)
            model.flags = flag_snapshots.FlagTracker(flags, flags)
            for _, other in model.submodels.values():
                self._note_flags(other)

    def find_leaks(self) -> tuple[Leak, ...]:
        """How shared models have been set since this was last asked."""
        return tuple(
            replace(leak, name=model.path_of(leak.name))
            for model in self._watch.models
            if model.flags is not None and (module := model.module()) is not None
            for leak in model.flags.find_leaks(
                model.name, flag_snapshots.read_model_flags(module, model.submodels), self._watch.own_hooks
            )
        )

    def restored_flags(self) -> set[tuple[str | None, str]]:
        """The settings of shared models, by model and name, that are what they were at first."""
        return {
            (model.name, model.path_of(name))
            for model in self._watch.models
            if model.flags is not None
            for name in model.flags.restored()
        }

    def drifts(self) -> tuple[Drift, ...]:
        return tuple(model.drift for model in self._watch.models if model.drift is not None)

    def save_to(self, history: SessionHistory, test: str, *, include_drifted: bool) -> None:
        """Remember what the shared models are at the end of a test; of `drifted` ones, if that has been told."""
        for model in self._watch.models:
            module, now = model.module(), model.full_snapshot()
            if (
                model.flags is not None
                and module is not None
                and now is not None
                and (include_drifted or not model.drift)
            ):
                history.record_model(module, now, test)

    def reset_baseline(self) -> None:
        """Take how they are set now for the beginning of this part of the window."""
        for model in self._watch.models:
            module = model.module()
            if module is not None and model.flags is not None:
                model.flags.latest = flag_snapshots.read_model_flags(module, model.submodels)
