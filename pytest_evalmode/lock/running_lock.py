"""The lock of one test while it runs, which compares values with the lock file or builds new entries."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pytest_evalmode.lock import checkpoint, model_entry
from pytest_evalmode.lock.arrays.array_entries import max_bytes_of, parse_array_entries
from pytest_evalmode.lock.arrays.comparison import compare
from pytest_evalmode.lock.arrays.named_batches import MetricFunction, NamedBatches
from pytest_evalmode.lock.arrays.packing import pack_streams
from pytest_evalmode.lock.arrays.recomputed_metrics import describe_recomputed_metrics
from pytest_evalmode.lock.arrays.tolerance import Tolerance
from pytest_evalmode.lock.lock_file import HOW_TO_UPDATE, KINDS, Entry, LockError, LockFile, StoredLock, read_lock_file
from pytest_evalmode.lock.preprocessing import describe, find_differences
from pytest_evalmode.lock.sample_store import MAX_BYTES, SampleStore
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.trace import LockChange, Site

_HEADER_BYTES = 1 << 16
_MAX_OUTPUT_BYTES = 1 << 17
_STATES = {
    "changed": ("changed too", "changed too"),
    "missing": ("is not locked yet", "are not locked yet"),
    "matches": ("still matches", "still match"),
}
"""How a message describes each state, in the singular and the plural; the first that applies is used."""


class RunningLock:
    """The lock of one test while it runs: with `update` it builds new entries, otherwise it compares with stored ones.

    The constructor and every method raise LockError if the lock file cannot be used.
    """

    def __init__(self, path: Path, test: str, *, update: bool) -> None:
        self._file: LockFile = read_lock_file(path)
        self._test = test
        self._update = update
        self._stored = self._file.tests.get(test, StoredLock()).entries
        self._samples = SampleStore(self._file, test)
        self._bytes_left = MAX_BYTES - _HEADER_BYTES
        self._batches: dict[tuple[str, str], NamedBatches] = {}
        self._used: dict[tuple[str, str], str] = {}
        """The state of each entry that the test used, a key of `_STATES`."""
        self._changes: list[LockChange] = []
        self._new_entries: dict[str, dict[str, Entry]] = {}

    def model(
        self, module: nn.Module, name: str, fingerprints: Mapping[str, Fingerprint] | None, at: Site | None
    ) -> None:
        """Compare a model with its lock entry, or build a new entry; a guard may have read `fingerprints`."""
        if self._update:
            contents = model_entry.read_contents(module, fingerprints)
            self._add_entry("model", name, model_entry.build_entry(contents))
            values = model_entry.sample_values(contents, min(self._bytes_left, model_entry.MAX_SAMPLE_BYTES))
            self._bytes_left -= self._samples.add("model", name, values)
            return
        locked = self._stored_entry("model", name, at)
        if locked is None:
            return
        fingerprints = model_entry.read_fingerprints(module) if fingerprints is None else fingerprints
        if model_entry.is_known_to_match(locked, fingerprints):
            return
        contents = model_entry.read_contents(module, fingerprints)
        if model_entry.matches(locked, contents):
            return
        samples = self._samples.load("model", name)
        causes = checkpoint.diagnose(model_entry.parse_records(locked, self._where("model", name)), contents, samples)
        title = contents.type if name == contents.type else f"{name} ({contents.type})"
        headline, finding, details = checkpoint.describe_causes(title, causes)
        self._report(LockChange("model", name, headline, finding, at, details=details))

    def inputs(self, batch: object, name: str, at: Site | None, tolerance: Tolerance) -> None:
        """Add a batch of inputs under this name; all batches are compared when the test ends."""
        self._add_batch("inputs", name, batch, at, tolerance, self._bytes_left * 2 // 3)

    def preprocessing(self, transform: object, name: str, at: Site | None) -> None:
        """Compare the steps and parameters of a transform with their lock entry, or build a new entry."""
        steps: Entry = json.loads(json.dumps(describe(transform)))
        if self._update:
            self._add_entry("preprocessing", name, {"steps": steps})
            return
        locked = self._stored_entry("preprocessing", name, at)
        if locked is None or locked.get("steps") == steps:
            return
        if not isinstance(locked.get("steps"), dict):
            raise LockError(f"{self._where('preprocessing', name)} has no steps; {HOW_TO_UPDATE}")
        differences = find_differences(locked["steps"], steps)
        if not differences:
            return
        headline = differences[0] + (f" (and {len(differences) - 1} more)" if len(differences) > 1 else "")
        finding, details = "; ".join(differences[:10]), {"differences": differences[:32]}
        self._report(LockChange("preprocessing", name, headline, finding, at, details=details))

    def outputs(
        self, value: object, name: str, at: Site | None, tolerance: Tolerance, again: MetricFunction | None = None
    ) -> None:
        """Add a batch of outputs under this name; all batches are compared when the test ends."""
        max_bytes = min(_MAX_OUTPUT_BYTES, self._bytes_left // 2)
        self._add_batch("outputs", name, value, at, tolerance, max_bytes).again = again

    def close(
        self, *, finished: bool, pause_guard: Callable[[], AbstractContextManager[None]] | None = None
    ) -> list[LockChange]:
        """Return what changed since the lock was updated.

        Args:
            finished: Whether the test ran to its end. If it did not, only complete arrays are compared.
            pause_guard: The context manager for calls of `again=` functions; None if they must not be called.
        """
        for batches in self._batches.values():
            if self._update:
                self._new_entries.setdefault(batches.kind, {})[batches.name] = batches.entry()
                self._samples.add(batches.kind, batches.name, pack_streams(batches.streams))
            else:
                self._compare(batches, finished=finished)
        # Wrong outputs often follow from a changed model or input, so their message names the state of these.
        other_states = _describe_states(self._used)
        changes = []
        for change in self._changes:
            if change.kind == "outputs" and not change.remedy:
                recomputed = self._recompute(change.name, pause_guard) if pause_guard is not None else ""
                change = replace(change, finding="; ".join(filter(None, [change.finding, other_states, recomputed])))
            changes.append(change)
        return changes

    def record(self) -> str:
        """Return which entries the test used, and its new entries, as JSON for the test's report."""
        content: dict[str, Any] = {"used": sorted(map(list, self._used))}
        if self._update:
            data = self._samples.to_bytes(self._used)
            content |= {"entries": self._new_entries, "samples": b64encode(data).decode() if data else None}
        return json.dumps(content)

    def _add_batch(
        self, kind: str, name: str, batch: object, at: Site | None, tolerance: Tolerance, max_bytes: int
    ) -> NamedBatches:
        batches = self._batches.setdefault((kind, name), NamedBatches(kind, name, at, tolerance, batch))
        locked = self._stored.get(kind, {}).get(name)
        if locked is None or self._update:
            self._bytes_left -= batches.add(batch, tolerance, max_bytes, self._bytes_left)
        else:
            # The samples must have the size of the stored ones, so that the two can be compared.
            sizes = max_bytes_of(parse_array_entries(locked, self._where(kind, name)))
            batches.add(batch, tolerance, sizes, MAX_BYTES)
        self._used.setdefault((kind, name), "matches")
        return batches

    def _compare(self, batches: NamedBatches, *, finished: bool) -> None:
        entry = self._stored_entry(batches.kind, batches.name, batches.at)
        if entry is None:
            return
        locked = parse_array_entries(entry, self._where(batches.kind, batches.name))
        if finished or batches.has_all_samples(locked):
            change = compare(batches, locked, partial(self._samples.load, batches.kind, batches.name))
            if change is not None:
                self._report(change)

    def _recompute(self, name: str, pause_guard: Callable[[], AbstractContextManager[None]]) -> str:
        """Describe how much of a metric's change the inputs explain; empty without `again=` or with several inputs."""
        again = self._batches["outputs", name].again
        changed = [other for (kind, other), state in self._used.items() if (kind, state) == ("inputs", "changed")]
        if again is None or len(changed) != 1:
            return ""
        inputs = self._batches["inputs", changed[0]]
        locked = self._stored["inputs"][inputs.name]["arrays"]
        metrics = self._stored["outputs"][name]["arrays"]
        samples = self._samples.load("inputs", inputs.name)
        return describe_recomputed_metrics(again, inputs, locked, samples, metrics, pause_guard)

    def _stored_entry(self, kind: str, name: str, at: Site | None) -> Entry | None:
        """Return the stored entry of a name; if there is none, report that once."""
        self._used.setdefault((kind, name), "matches")
        entry = self._stored.get(kind, {}).get(name)
        if entry is None and self._used[kind, name] == "matches":
            headline = f"{kind} {name!r} is not locked yet: run pytest --evalmode-update-lock"
            finding = f"{self._file.path.name} has no entry for it"
            self._report(LockChange(kind, name, headline, finding, at, details={"missing": True}, remedy=HOW_TO_UPDATE))
            self._used[kind, name] = "missing"
        return entry

    def _report(self, change: LockChange) -> None:
        self._used[change.kind, change.name] = "changed"
        self._changes.append(replace(change, file=str(self._file.path)))

    def _add_entry(self, kind: str, name: str, entry: Entry) -> None:
        before = self._new_entries.setdefault(kind, {}).setdefault(name, entry)
        if before != entry:
            message = f"evalmode_lock: this test locks two different values as {kind} {name!r}; use different names"
            raise LockError(message)
        self._used[kind, name] = "matches"

    def _where(self, kind: str, name: str) -> str:
        return f"{self._file.path} ({self._test}): {kind} {name!r}"


def _describe_states(used: Mapping[tuple[str, str], str]) -> str:
    """Say which of the model, inputs and preprocessing still match: one of them may be the reason."""
    descriptions = []
    for kind in KINDS[:3]:
        states = {state for (other, _), state in used.items() if other == kind}
        forms = next((_STATES[state] for state in _STATES if state in states), None)
        if forms is not None:
            descriptions.append(f"the {kind} {forms[1] if kind == 'inputs' else forms[0]}")
    return ", ".join(descriptions)
