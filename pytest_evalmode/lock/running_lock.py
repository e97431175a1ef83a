"""The lock of one test while it runs: it compares values with the lock file, and builds new entries for an update."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_evalmode.lock.arrays.comparison import compare
from pytest_evalmode.lock.arrays.named_batches import MetricFunction, NamedBatches, check_tolerance
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.recomputed_metrics import describe_recomputed_metrics
from pytest_evalmode.lock.arrays.stream import Budget, parse_arrays
from pytest_evalmode.lock.arrays.tolerance import Tolerance
from pytest_evalmode.lock.checkpoint import model_changes
from pytest_evalmode.lock.lock_file import (
    HOW_TO_UPDATE,
    KINDS,
    MODELS,
    Entry,
    LockError,
    NewerVersionError,
    StoredLock,
    escape,
    lock_path,
    model_path,
    read_lock,
    read_samples,
)
from pytest_evalmode.lock.preprocessing import describe, find_differences
from pytest_evalmode.lock.sample_store import MAX_BYTES, Arrays, key_of, pack, unpack
from pytest_evalmode.trace import LockChange, Site

if TYPE_CHECKING:
    from pytest_evalmode.observe.state.fingerprint import Fingerprint

_HEADER_BYTES = 1 << 16
_MAX_FILES = 2000
_STATES = {
    "changed": ("changed too", "changed too"),
    "missing": ("is not locked yet", "are not locked yet"),
    "matches": ("still matches", "still match"),
}
"""How a message describes each state, in the singular and the plural; the first that applies is used."""


class RunningLock:
    """The lock of one test while it runs; with `update`, differences do not fail and `record()` has new entries.

    The constructor and every method raise LockError if the lock file cannot be used.
    """

    def __init__(self, test_file: Path, test: str, *, update: bool) -> None:
        self._path = lock_path(test_file, test)
        self._update = update
        self._stored = StoredLock(test)
        try:
            self._stored = read_lock(self._path, test) or self._stored
        except LockError as error:
            if not update or isinstance(error, NewerVersionError):  # others are replaced by the update
                raise
        self._samples: Arrays = {}
        self._problem = ""
        """Why the stored samples cannot be used."""
        self._budget = Budget(MAX_BYTES - _HEADER_BYTES if update else MAX_BYTES * 8)
        self._batches: dict[tuple[str, str], NamedBatches] = {}
        self._used: dict[tuple[str, str], str] = {}
        """The state of each entry that the test used, a key of `_STATES`."""
        self._changes: list[LockChange] = []
        self._new: dict[str, dict[str, Entry]] = {}
        self._models: dict[str, tuple[Entry, bytes | None]] = {}

    def model(
        self, module: nn.Module, name: str, fingerprints: Mapping[str, Fingerprint] | None, at: Site | None
    ) -> None:
        """Compare a model, or build its entry; `fingerprints` are those that a guard has read, if any."""
        locked = self._stored_entry("model", name, at)
        if locked is not None:
            with self._lenient():
                path = model_path(self._path, locked.get("record"))
                self._report(model_changes.find_change(path, module, name, fingerprints, at))
        if self._update or locked is None:
            entry, record = model_changes.build_entry(module)
            self._add_entry("model", name, entry)
            self._models[entry["record"]] = record

    def add(
        self,
        kind: str,
        name: str,
        batch: object,
        tolerance: Tolerance,
        find_site: Callable[[], Site | None],
        again: MetricFunction | None = None,
    ) -> None:
        """Add a batch to the inputs or outputs of a name; they are compared when the test ends.

        The tolerance of the first batch applies.
        """
        check_tolerance(kind, *tolerance)
        batches = self._batches.get((kind, name))
        if batches is None:
            entry, locked = self._stored.entries.get(kind, {}).get(name), {}
            with self._lenient():
                locked = {} if entry is None else parse_arrays(entry, f"{self._path}: {kind} {name!r}")
            batches = NamedBatches(kind, name, find_site(), tolerance, batch, self._budget, locked, self._update)
            self._batches[kind, name] = batches
            self._used.setdefault((kind, name), "matches")
        batches.again = again
        batches.add(batch)

    def preprocessing(self, transform: object, name: str, at: Site | None) -> None:
        """Compare the steps of a transform and their parameters, or build their entry."""
        try:
            steps = json.loads(json.dumps(describe(transform)))
        except (TypeError, ValueError, RecursionError) as error:
            raise LockError(
                f"evalmode_lock.preprocessing(): cannot describe {type(transform).__name__}: {error}"
            ) from None
        self._add_entry("preprocessing", name, {"steps": steps})
        locked = self._stored_entry("preprocessing", name, at)
        differences = [] if locked is None else find_differences(locked.get("steps"), steps)
        if differences:
            headline = differences[0] + (f" (and {len(differences) - 1} more)" if len(differences) > 1 else "")
            finding, details = "; ".join(differences[:10]), {"differences": differences[:32]}
            self._report(LockChange("preprocessing", name, headline, finding, at, details=details))

    def close(
        self,
        *,
        finished: bool,
        pause_guard: Callable[[], AbstractContextManager[None]] | None = None,
        current_tests: Callable[[], Collection[Path]] = tuple,
    ) -> list[LockChange]:
        """Return what changed since the lock was updated; nothing in an update.

        Args:
            finished: Whether the test ran to its end. If it did not, only complete arrays are compared.
            pause_guard: The context manager for calls of `again=` functions; None if they must not be called.
            current_tests: Returns the lock files of this run's tests; others may be of a test that was renamed.
        """
        for (kind, name), batches in self._batches.items():
            locked = self._stored_entry(kind, name, batches.at)
            if locked is not None and (finished or batches.has_all_samples):
                self._report(compare(batches, partial(self._load_samples, kind, name)))
            if self._update:
                self._new.setdefault(kind, {})[name] = batches.entry()
        if self._update:
            return []
        renamed = self._find_renamed(current_tests()) if finished and not self._stored.entries else ""
        # Wrong outputs often follow from a changed model or input, so their message names the state of these.
        other_states = _describe_states(self._used)
        changes = []
        for change in self._changes:
            parts = [change.finding]
            if change.kind == "outputs" and not change.remedy:
                recomputed = self._recompute(change.name, pause_guard) if pause_guard is not None else ""
                parts += [other_states, recomputed]
            parts.append(renamed if change.remedy else self._problem if change.kind in ("inputs", "outputs") else "")
            finding = escape("; ".join(filter(None, parts)))
            changes.append(replace(change, headline=escape(change.headline), finding=finding))
        return changes

    def record(self) -> str:
        """Return which entries the test used, and for an update its new entries, as JSON for the test's report."""
        content: dict[str, Any] = {"used": sorted(map(list, self._used))}
        if self._update:
            samples = {
                key_of(kind, name, path): values
                for (kind, name), batches in self._batches.items()
                for path, values in pack_streams(batches.streams).items()
            }
            content["entries"] = self._new
            content["samples"] = _to_text(pack(samples))
            content["models"] = {key: [entry, _to_text(data)] for key, (entry, data) in self._models.items()}
            new = [f"{kind} {name!r}" for (kind, name), state in self._used.items() if state == "missing"]
            changes = [f"changed {each.kind} {each.name!r}: {each.headline}" for each in self._changes]
            content["changes"] = [escape(each) for each in (*([f"new: {', '.join(new)}"] if new else []), *changes)]
        return json.dumps(content)

    def _recompute(self, name: str, pause_guard: Callable[[], AbstractContextManager[None]]) -> str:
        """Describe how a metric follows from inputs that changed; empty without `again=` or with several inputs."""
        again = self._batches["outputs", name].again
        changed = [other for (kind, other), state in self._used.items() if (kind, state) == ("inputs", "changed")]
        if again is None or len(changed) != 1:
            return ""
        inputs, metrics = self._batches["inputs", changed[0]], self._batches["outputs", name].locked
        samples = self._load_samples("inputs", inputs.name)
        return describe_recomputed_metrics(again, inputs, samples, metrics, pause_guard)

    def _load_samples(self, kind: str, name: str) -> Arrays:
        """Return the stored samples of an entry by path; none, and a reason in the message, if they cannot be used."""
        try:
            stored = self._samples = self._samples or unpack(read_samples(self._path, self._stored.samples))
        except LockError as error:
            self._problem = str(error)
            return {}
        paths = (each for path in self._batches[kind, name].locked for each in (path, f"{path}#digests"))
        return {path: stored[key] for path in paths if (key := key_of(kind, name, path)) in stored}

    def _stored_entry(self, kind: str, name: str, at: Site | None) -> Entry | None:
        """Return the stored entry of a name; if there is none, report that once."""
        self._used.setdefault((kind, name), "matches")
        entry = self._stored.entries.get(kind, {}).get(name)
        if entry is None and self._used[kind, name] == "matches":
            headline = f"{kind} {name!r} is not locked yet: run pytest --evalmode-update-lock"
            finding = f"{self._path.name} has no entry for it"
            if not self._update:
                details = {"missing": True}
                self._report(LockChange(kind, name, headline, finding, at, details=details, remedy=HOW_TO_UPDATE))
            self._used[kind, name] = "missing"
        return entry

    def _find_renamed(self, current_tests: Collection[Path]) -> str:
        """Say which lock file has the values of this test, if its test no longer exists."""
        new = [(kind, name, _identity(entry)) for kind, each in self._new.items() for name, entry in each.items()]
        with suppress(LockError):
            new += [(kind, name, _identity(batches.entry())) for (kind, name), batches in self._batches.items()]
        for path in sorted(self._path.parents[1].glob("*/*.lock.json"))[:_MAX_FILES]:
            if path == self._path or path in current_tests or path.parent.name == MODELS:
                continue
            with suppress(LockError):
                other = read_lock(path) or StoredLock("")
                if new and all(
                    _identity(other.entries.get(kind, {}).get(name)) == values for kind, name, values in new
                ):
                    place = f"{path.parent.name}/{path.name}"
                    return f"its values are those of {other.test} in {place}: was the test renamed?"
        return ""

    def _report(self, change: LockChange | None) -> None:
        if change is not None:
            self._used[change.kind, change.name] = "changed"
            self._changes.append(replace(change, file=str(self._path)))

    def _lenient(self) -> AbstractContextManager[None]:
        """Return a context manager in which an update, which replaces what is invalid, ignores a LockError."""
        return suppress(LockError) if self._update else nullcontext()

    def _add_entry(self, kind: str, name: str, entry: Entry) -> None:
        before = self._new.setdefault(kind, {}).setdefault(name, entry)
        if before != entry and self._update:
            message = f"evalmode_lock: this test locks two different values as {kind} {name!r}; use different names"
            raise LockError(message)


def _identity(entry: Entry | None) -> object:
    """Return an entry without what does not depend on its values: which samples are stored."""
    arrays = (entry or {}).get("arrays")
    if not isinstance(arrays, dict):
        return entry
    return {path: {**each, "room": 0, "kept": ""} if isinstance(each, dict) else each for path, each in arrays.items()}


def _to_text(data: bytes | None) -> str | None:
    return None if data is None else b64encode(data).decode()


def _describe_states(used: Mapping[tuple[str, str], str]) -> str:
    """Say which of the model, inputs and preprocessing still match: one of them may be the reason."""
    descriptions = []
    for kind in KINDS[:3]:
        states = {state for (other, _), state in used.items() if other == kind}
        forms = next((_STATES[state] for state in _STATES if state in states), None)
        if forms is not None:
            descriptions.append(f"the {kind} {forms[1] if kind == 'inputs' else forms[0]}")
    return ", ".join(descriptions)
