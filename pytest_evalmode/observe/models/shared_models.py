"""Models that outlive a test: leaks of their flags, and drift since the last guarded test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import FlagTracker
from pytest_evalmode.trace import Drift, Leak


class SharedModels:
    """The shared models of one window, for the strict rules: models of fixtures that outlive the test."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def add(self, module: nn.Module, history: SessionHistory | None) -> None:
        """Watch the flags of a model; with a history, also compare its state with that after the last guarded test."""
        model = self._watch.add(module)
        module = modules.unwrap(module)
        if model.flags is None and model.module() is module:
            self._read_flags(model)
            now = model.full_snapshot()
            if history is not None and now is not None:
                model.drift = history.find_drift(module, model.name, now)

    def _read_flags(self, model: TrackedModel) -> None:
        """Read the flags of a model and its submodels, unless that was done before."""
        module = model.module()
        if module is not None and model.flags is None:
            flags = flag_snapshots.read_model_flags(module, model.submodels)
            model.flags = FlagTracker(flags, flags)
            for _, other in model.submodels.values():
                self._read_flags(other)

    def find_leaks(self) -> tuple[Leak, ...]:
        """Return the flags of shared models that changed since the last call."""
        return tuple(
            replace(leak, name=model.path_of(leak.name))
            for model, module, flags in self._living()
            for leak in flags.find_leaks(
                model.name, flag_snapshots.read_model_flags(module, model.submodels), self._watch.own_hooks
            )
        )

    def restored_flags(self) -> set[tuple[str | None, str]]:
        """Return the flags of shared models, as (model, name), that have an earlier value again."""
        return {
            (model.name, model.path_of(name))
            for model in self._watch.registry.models
            if model.flags is not None
            for name in model.flags.restored()
        }

    def drifts(self) -> tuple[Drift, ...]:
        return tuple(model.drift for model in self._watch.registry.models if model.drift is not None)

    def save_to(self, history: SessionHistory, test: str, *, include_drifted: bool) -> None:
        """Store the state of the shared models at the end of a test.

        If a drift was not reported, pass `include_drifted=False`: the next test reports it.
        """
        for model, module, _ in self._living():
            now = model.full_snapshot()
            if now is not None and (include_drifted or not model.drift):
                history.record_model(module, now, test)

    def reset_baseline(self) -> None:
        """Compare the flags with their current values from now on."""
        for model, module, flags in self._living():
            flags.latest = flag_snapshots.read_model_flags(module, model.submodels)

    def _living(self) -> Iterator[tuple[TrackedModel, nn.Module, FlagTracker]]:
        for model in self._watch.registry.models:
            module = model.module()
            if module is not None and model.flags is not None:
                yield model, module, model.flags
