"""The lock of one test while it runs: what it is shown is compared with what is locked, or taken for the next lock."""

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

_HEADERS = 1 << 16
_MOST_OUTPUT = 1 << 17
_STATES = {"changed": "changed too", "missing": "has yet to be locked", "holds": "holds"}


class RunningLock:
    """What is locked for one test, and what the test shows of it.

    Raises LockError, here and in every method, where the lock file cannot be used.
    """

    def __init__(self, path: Path, test: str, *, update: bool) -> None:
        self._file: LockFile = read_lock_file(path)
        self._test = test
        self._update = update
        self._locked = self._file.tests.get(test, StoredLock()).entries
        self._samples = SampleStore(self._file, test)
        self._left = MAX_BYTES - _HEADERS
        self._flows: dict[tuple[str, str], NamedBatches] = {}
        self._used: dict[tuple[str, str], str] = {}
        """What the test has shown, with whether it holds, in words."""
        self._changes: list[LockChange] = []
        self._entries: dict[str, dict[str, Entry]] = {}
        """What is taken for the next lock."""

    def model(
        self, module: nn.Module, name: str, fingerprints: Mapping[str, Fingerprint] | None, at: Site | None
    ) -> None:
        """Compare or take a model; `prints` where a guard has read it."""
        if self._update:
            held = model_entry.read_contents(module, fingerprints)
            self._take("model", name, model_entry.build_entry(held))
            self._left -= self._samples.add(
                "model", name, model_entry.sample_values(held, min(self._left, model_entry.MAX_SAMPLE_BYTES))
            )
            return
        was = self._entry("model", name, at)
        if was is None:
            return
        fingerprints = model_entry.read_fingerprints(module) if fingerprints is None else fingerprints
        if model_entry.is_known_to_match(was, fingerprints):
            return
        held = model_entry.read_contents(module, fingerprints)
        if model_entry.matches(was, held):
            return
        kept = self._samples.load("model", name)
        causes = checkpoint.diagnose(model_entry.parse_records(was, self._where("model", name)), held, kept)
        title = held.type if name == held.type else f"{name} ({held.type})"
        headline, finding, details = checkpoint.describe_causes(title, causes)
        self._tell(LockChange("model", name, headline, finding, at, details=details))

    def inputs(self, batch: object, name: str, at: Site | None, tolerance: Tolerance) -> None:
        """Compare or take a batch; further ones of this name come after it."""
        self._add("inputs", name, batch, at, tolerance, self._left * 2 // 3)

    def preprocessing(self, transform: object, name: str, at: Site | None) -> None:
        """Compare or take the steps of a transform and their parameters."""
        now: Entry = json.loads(json.dumps(describe(transform)))
        if self._update:
            self._take("preprocessing", name, {"steps": now})
            return
        was = self._entry("preprocessing", name, at)
        if was is None or was.get("steps") == now:
            return
        if not isinstance(was.get("steps"), dict):
            raise LockError(f"{self._where('preprocessing', name)} describes no steps; {HOW_TO_UPDATE}")
        found = find_differences(was["steps"], now)
        if not found:
            return
        headline = found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
        finding, details = "; ".join(found[:10]), {"differences": found[:32]}
        self._tell(LockChange("preprocessing", name, headline, finding, at, details=details))

    def outputs(
        self, value: object, name: str, at: Site | None, tolerance: Tolerance, again: MetricFunction | None = None
    ) -> None:
        """Compare or take outputs; further ones of this name come after them."""
        self._add("outputs", name, value, at, tolerance, min(_MOST_OUTPUT, self._left // 2)).again = again

    def close(
        self, *, finished: bool, pause_guard: Callable[[], AbstractContextManager[None]] | None = None
    ) -> list[LockChange]:
        """What is not as it was locked; of a test that has not `finished`, what it came to see whole.

        `aside` is where outputs may be made again.
        """
        for flow in self._flows.values():
            if self._update:
                self._entries.setdefault(flow.kind, {})[flow.name] = flow.entry()
                self._samples.add(flow.kind, flow.name, pack_streams(flow.streams))
            else:
                self._compare(flow, finished=finished)
        holding = _told_of_the_rest(self._used)
        changes = []
        for change in self._changes:
            if change.kind == "outputs" and not change.remedy:
                made_again = self._tried(change.name, pause_guard) if pause_guard is not None else ""
                change = replace(change, finding="; ".join(filter(None, [change.finding, holding, made_again])))
            changes.append(change)
        return changes

    def record(self) -> str:
        """What the test has shown, as it travels in its report."""
        found: dict[str, Any] = {"used": sorted(map(list, self._used))}
        if self._update:
            data = self._samples.to_bytes(self._used)
            found |= {"entries": self._entries, "samples": b64encode(data).decode() if data else None}
        return json.dumps(found)

    def _add(
        self, kind: str, name: str, batch: object, at: Site | None, tolerance: Tolerance, room: int
    ) -> NamedBatches:
        flow = self._flows.setdefault((kind, name), NamedBatches(kind, name, at, tolerance, batch))
        was = self._locked.get(kind, {}).get(name)
        if was is None or self._update:
            self._left -= flow.add(batch, tolerance, room, self._left)
        else:
            flow.add(batch, tolerance, max_bytes_of(parse_array_entries(was, self._where(kind, name))), MAX_BYTES)
        self._used.setdefault((kind, name), "holds")
        return flow

    def _compare(self, flow: NamedBatches, *, finished: bool) -> None:
        entry = self._entry(flow.kind, flow.name, flow.at)
        if entry is None:
            return
        was = parse_array_entries(entry, self._where(flow.kind, flow.name))
        if finished or flow.has_all_samples(was):
            change = compare(flow, was, partial(self._samples.load, flow.kind, flow.name))
            if change is not None:
                self._tell(change)

    def _tried(self, name: str, aside: Callable[[], AbstractContextManager[None]]) -> str:
        """What a metric is with the inputs that were locked, where the test tells how to make it, and they changed."""
        again = self._flows["outputs", name].again
        changed = [other for (kind, other), state in self._used.items() if (kind, state) == ("inputs", "changed")]
        if again is None or len(changed) != 1:
            return ""
        inputs = self._flows["inputs", changed[0]]
        was = self._locked["inputs"][inputs.name]["arrays"]
        metrics = self._locked["outputs"][name]["arrays"]
        return describe_recomputed_metrics(
            again, inputs, was, self._samples.load("inputs", inputs.name), metrics, aside
        )

    def _entry(self, kind: str, name: str, at: Site | None) -> Entry | None:
        """What is locked under a name; nothing is told, once."""
        self._used.setdefault((kind, name), "holds")
        found = self._locked.get(kind, {}).get(name)
        if found is None and self._used[kind, name] == "holds":
            headline = f"{kind} {name!r} is not locked yet: run pytest --evalmode-update-lock"
            finding = f"{self._file.path.name} has no entry for it"
            self._tell(LockChange(kind, name, headline, finding, at, details={"missing": True}, remedy=HOW_TO_UPDATE))
            self._used[kind, name] = "missing"
        return found

    def _tell(self, change: LockChange) -> None:
        self._used[change.kind, change.name] = "changed"
        self._changes.append(replace(change, file=str(self._file.path)))

    def _take(self, kind: str, name: str, entry: Entry) -> None:
        before = self._entries.setdefault(kind, {}).setdefault(name, entry)
        if before != entry:
            raise LockError(f"evalmode_lock: this test locks two different things as {kind} {name!r}; give each a name")
        self._used[kind, name] = "holds"

    def _where(self, kind: str, name: str) -> str:
        return f"{self._file.path} ({self._test}): {kind} {name!r}"


def _told_of_the_rest(used: Mapping[tuple[str, str], str]) -> str:
    """Which of the other three still hold: one of them may be the reason."""
    said = []
    for kind in KINDS[:3]:
        states = {state for (other, _), state in used.items() if other == kind}
        words = next((_STATES[state] for state in _STATES if state in states), None)
        if words is not None:
            said.append(f"the {kind} {words.removesuffix('s') if kind == 'inputs' and words == 'holds' else words}")
    return ", ".join(said)
