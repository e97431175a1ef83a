"""The lock of one test while it runs: what it is shown is compared with what is locked, or taken for the next lock."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_evalmode.lock import batches, checkpoint, model, outputs
from pytest_evalmode.lock.batches import Stream
from pytest_evalmode.lock.file import KINDS, Entry, Locked, LockError, LockFile, read
from pytest_evalmode.lock.model import Held
from pytest_evalmode.lock.outputs import Again, Tolerance
from pytest_evalmode.lock.preprocessing import describe, differences
from pytest_evalmode.lock.samples import MOST_BYTES, pack, unpack
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.trace import LockChange, Site

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_HEADERS = 1 << 16
_MOST_OUTPUT = 1 << 17
_STATES = {"changed": "changed too", "missing": "has yet to be locked", "holds": "holds"}
_UPDATE = "run pytest --evalmode-update-lock, review the file that it writes, and commit it"


@dataclass(slots=True)
class _Flow:
    """What comes batch by batch, and is compared when the test has ended."""

    at: Site | None
    tolerance: Tolerance
    first: object
    """The batch that came first."""
    again: Again | None = None
    streams: dict[str, Stream] = field(default_factory=dict)


class Lock:
    """What is locked for one test, and what the test shows of it.

    Raises LockError, here and in every method, where the lock file cannot be used.
    """

    def __init__(self, path: Path, test: str, *, update: bool) -> None:
        self._file: LockFile = read(path)
        self._test = test
        self._update = update
        self._locked = self._file.tests.get(test, Locked())
        self._flows: dict[tuple[str, str], _Flow] = {}
        self._changes: list[LockChange] = []
        self._entries: dict[str, dict[str, Entry]] = {}
        self._arrays: dict[str, Array] = {}
        self._used: dict[tuple[str, str], str] = {}
        """What the test has shown, with whether it holds, in words."""
        self._left = MOST_BYTES - _HEADERS
        self._kept: Mapping[str, Array] | None = None

    def model(self, module: nn.Module, name: str, prints: Mapping[str, Fingerprint] | None, at: Site | None) -> None:
        """Compare or take a model; `prints` where a guard has read it."""
        if self._update:
            self._take_model(name, model.hold(module, prints))
            return
        was = self._entry("model", name, at)
        if was is None:
            return
        prints = model.read(module) if prints is None else prints
        if model.is_known_to_hold(was, prints):
            return
        held = model.hold(module, prints)
        if model.holds(was, held):
            return
        kept = {key[2]: values for key, values in self._samples("model", name)}
        causes = checkpoint.diagnose(model.lines(was, self._where("model", name)), held, kept)
        title = held.type if name == held.type else f"{name} ({held.type})"
        self._change("model", name, at, *checkpoint.told(title, causes))

    def inputs(self, batch: object, name: str, at: Site | None, tolerance: Tolerance) -> None:
        """Compare or take a batch; further ones of this name come after it."""
        self._extend("inputs", name, batch, at, tolerance, self._left * 2 // 3)

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
            raise LockError(f"{self._where('preprocessing', name)} describes no steps; {_UPDATE}")
        found = differences(was["steps"], now)
        if not found:
            return
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        self._change("preprocessing", name, at, f"{found[0]}{more}", "; ".join(found[:10]), {"differences": found[:32]})

    def outputs(
        self, value: object, name: str, at: Site | None, tolerance: Tolerance, again: Again | None = None
    ) -> None:
        """Compare or take outputs; further ones of this name come after them."""
        self._extend("outputs", name, value, at, tolerance, min(_MOST_OUTPUT, self._left // 2))
        self._flows["outputs", name].again = again

    def close(
        self, *, finished: bool, aside: Callable[[], AbstractContextManager[None]] | None = None
    ) -> list[LockChange]:
        """What is not as it was locked; of a test that has not `finished`, what it came to see whole.

        `aside` is where outputs may be made again.
        """
        for (kind, name), flow in self._flows.items():
            if self._update:
                arrays = {path: stream.entry() for path, stream in flow.streams.items()}
                self._entries.setdefault(kind, {})[name] = {"arrays": arrays}
                self._add_samples(kind, name, batches.packed(flow.streams))
            elif self._entry(kind, name, flow.at) is not None:
                self._compare(kind, name, flow, finished=finished)
        holding = self._told_of_the_rest()
        changes = []
        for change in self._changes:
            if change.kind == "outputs" and not change.remedy:
                tried = self._tried(change.name, aside) if aside is not None else ""
                change = replace(change, finding="; ".join(filter(None, [change.finding, holding, tried])))
            changes.append(change)
        return changes

    def record(self) -> str:
        """What the test has shown, as it travels in its report."""
        found: dict[str, Any] = {"used": sorted(map(list, self._used))}
        if self._update:
            data = pack({**self._unused_samples(), **self._arrays})
            found |= {"entries": self._entries, "samples": b64encode(data).decode() if data else None}
        return json.dumps(found)

    def _extend(self, kind: str, name: str, value: object, at: Site | None, tolerance: Tolerance, room: int) -> None:
        exact = kind == "inputs" and tolerance["rtol"] is None
        flow = self._flows.get((kind, name))
        if flow is None:
            flow = self._flows[kind, name] = _Flow(at, tolerance, value)
        was = self._locked.entries.get(kind, {}).get(name)
        if was is None or self._update:
            self._left -= batches.extend(flow.streams, value, room, self._left, fewest=kind == "inputs", exact=exact)
        else:
            known = batches.room_of(batches.checked(was, self._where(kind, name)))
            batches.extend(flow.streams, value, known, MOST_BYTES, fewest=kind == "inputs", exact=exact)
        self._used.setdefault((kind, name), "holds")

    def _compare(self, kind: str, name: str, flow: _Flow, *, finished: bool) -> None:
        where = self._where(kind, name)
        was = batches.checked(self._locked.entries[kind][name], where)
        if not finished and any(
            path not in flow.streams or flow.streams[path].count < entry["samples"] for path, entry in was.items()
        ):
            return
        told: dict[str, tuple[str, str]] = {}
        moved = [f"{path} is missing" for path in was if path not in flow.streams]
        moved += [f"{path} is new" for path in flow.streams if path not in was]
        if moved:
            told[""] = ("; ".join(moved), "")
        details: dict[str, object] = {}
        drawn: dict[str, object] = {}
        for path, stream in flow.streams.items():
            if path not in was or batches.holds(was[path], stream.entry()):
                continue
            other = next((name for name in was if name != path and batches.holds(was[name], stream.entry())), None)
            if other is not None:
                told[path] = (f"what was {other}", f"{path} is what {other} was")
                continue
            kept = {key[2]: values for key, values in self._samples(kind, name)}
            values, sketch, digests = (kept.get(f"{path}{more}") for more in ("", "#sketch", "#digests"))
            limits = {limit: value for limit, value in flow.tolerance.items() if value is not None}
            is_exact = kind == "inputs" and not limits
            far = None if is_exact else outputs.difference(was[path], stream, values, sketch, flow.tolerance)
            if kind == "outputs" and far is not None:
                told[path] = far
            elif is_exact or far is not None:
                words, details[path] = batches.difference(was[path], stream, values, digests, **limits)
                told[path] = words, words
                drawn |= {path: batches.drawn(was[path], stream, values)} if kind == "inputs" else {}
        if told:
            alone = len(was) == 1
            heads = [words if alone or not path else f"{path}: {words}" for path, (words, _) in told.items()]
            more_words = [longer for _, longer in told.values()]
            headline = "; ".join(heads[:3]) + (f" (and {len(heads) - 3} more)" if len(heads) > 3 else "")
            if kind == "outputs":
                headline = f"{name}: {headline}"
                details = {"differences": [longer for longer in more_words if longer]}
            finding = headline if kind == "outputs" else f"{name}: {headline}"
            shown = {path: each for path, each in drawn.items() if each}
            self._change(kind, name, flow.at, headline, finding, details, pictures=shown)

    def _tried(self, name: str, aside: Callable[[], AbstractContextManager[None]]) -> str:
        """What a metric is with the inputs that were locked, where the test tells how to make it, and they changed."""
        again = self._flows["outputs", name].again
        names = [other for (kind, other), state in self._used.items() if (kind, state) == ("inputs", "changed")]
        if again is None or len(names) != 1:
            return ""
        flow = self._flows["inputs", names[0]]
        kept = {key[2]: values for key, values in self._samples("inputs", names[0])}
        was = self._locked.entries["inputs"][names[0]]["arrays"]
        both = outputs.first_of_both(was, flow.streams, kept)
        if both is None:
            return ""
        with aside():
            whole = all(each["samples"] == len(both[0][path]) for path, each in was.items())
            metrics = self._locked.entries["outputs"][name]["arrays"] if whole else {}
            return outputs.tried(again, flow.first, *both, metrics)

    def _told_of_the_rest(self) -> str:
        """Which of the other three still hold: one of them may be the reason."""
        said = []
        for kind in KINDS[:3]:
            states = {state for (other, _), state in self._used.items() if other == kind}
            words = next((_STATES[state] for state in _STATES if state in states), None)
            if words is not None:
                said.append(f"the {kind} {words.removesuffix('s') if kind == 'inputs' and words == 'holds' else words}")
        return ", ".join(said)

    def _entry(self, kind: str, name: str, at: Site | None) -> Entry | None:
        self._used.setdefault((kind, name), "holds")
        found = self._locked.entries.get(kind, {}).get(name)
        if found is None and self._used[kind, name] == "holds":
            headline = f"{kind} {name!r} is not locked yet: run pytest --evalmode-update-lock"
            finding = f"{self._file.path.name} has no entry for it"
            self._change(kind, name, at, headline, finding, {"missing": True}, remedy=_UPDATE)
            self._used[kind, name] = "missing"
        return found

    def _change(
        self,
        kind: str,
        name: str,
        at: Site | None,
        headline: str,
        finding: str,
        details: Mapping[str, object],
        remedy: str = "",
        pictures: Mapping[str, object] | None = None,
    ) -> None:
        self._used[kind, name] = "changed"
        file = str(self._file.path)
        self._changes.append(LockChange(kind, name, headline, finding, at, file, details, remedy, pictures or {}))

    def _take(self, kind: str, name: str, entry: Entry) -> None:
        before = self._entries.setdefault(kind, {}).setdefault(name, entry)
        if before != entry:
            raise LockError(f"evalmode_lock: this test locks two different things as {kind} {name!r}; give each a name")
        self._used[kind, name] = "holds"

    def _take_model(self, name: str, held: Held) -> None:
        self._take("model", name, model.entry(held))
        self._add_samples("model", name, model.samples(held, min(self._left, model.MOST_SAMPLED)))

    def _add_samples(self, kind: str, name: str, arrays: Mapping[str, Array]) -> None:
        for path, values in arrays.items():
            key = json.dumps([kind, name, path])
            if key not in self._arrays and kind == "model":
                self._left -= values.nbytes
            self._arrays[key] = values

    def _samples(self, kind: str, name: str) -> Iterator[tuple[tuple[str, str, str], Array]]:
        """What was kept for a diagnosis, by the path of each array."""
        if self._kept is None:
            where = f"{self._file.path} ({self._test}): its samples"
            self._kept = unpack(self._file.sample_bytes(self._test), where) if self._locked.entries else {}
        for key, values in self._kept.items():
            try:
                owner, own, path = json.loads(key)
            except (ValueError, TypeError, RecursionError):
                raise LockError(f"{self._file.path} ({self._test}): {key!r:.80} names no sample; {_UPDATE}") from None
            if (owner, own) == (kind, name):
                yield (kind, name, path), values

    def _unused_samples(self) -> dict[str, Array]:
        """What was kept for entries that this run of the test did not come to."""
        found: dict[str, Array] = {}
        for kind, entries in self._locked.entries.items():
            for name in entries:
                if (kind, name) not in self._used:
                    found |= {json.dumps(key): values for key, values in self._samples(kind, name)}
        return found

    def _where(self, kind: str, name: str) -> str:
        return f"{self._file.path} ({self._test}): {kind} {name!r}"
