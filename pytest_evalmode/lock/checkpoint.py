"""A model that is not the one that was locked -> how it differs, in the words of the field.

Each question below looks at the tensors that no earlier one has explained, and takes away those that it explains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pytest_evalmode.lock.initial import initialisation
from pytest_evalmode.lock.model import Held, Line, digest, sample, unordered
from pytest_evalmode.observe.state.fingerprint import undisturbed
from pytest_evalmode.rules.wording import first_and_more, plural

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_NARROW = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "float8", "float4")
_FEWEST_LEVELS, _MOST_LEVELS = 6, 256
_PACKED = "_packed_params"
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that became of a model; `words` go on from "model (ResNet): "."""

    kind: str
    words: str
    tensors: tuple[str, ...] = ()


@dataclass(slots=True)
class _Case:
    """What has yet to be explained."""

    was: Mapping[str, Line]
    now: Held
    samples: Mapping[str, Array]
    pairs: dict[str, str] = field(default_factory=dict)
    """The live name of each locked tensor that still has one."""
    changed: dict[str, str] = field(default_factory=dict)
    """Those of the pairs that differ."""
    gone: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def live(self, name: str) -> Tensor:
        return self.now.tensors[self.pairs[name]]

    def line(self, name: str) -> Line:
        return self.now.lines[self.pairs[name]]

    def both(self, name: str) -> tuple[Array, Array] | None:
        """The values that were kept of a tensor, and what they are now."""
        old = self.samples.get(name)
        if old is None or old.ndim != 2 or self.was[name].shape != self.line(name).shape:
            return None
        new = sample(self.live(name), *old.shape)
        return None if new is None or new.shape != old.shape else (old, new)

    def explained(self, names: Iterable[str]) -> None:
        for name in names:
            del self.changed[name]


def diagnose(was: Mapping[str, Line], now: Held, samples: Mapping[str, Array]) -> list[Cause]:
    """The causes that together make of the locked model the live one, in the order in which they are told."""
    case = _Case(was, now, samples)
    causes: list[Cause] = []
    with undisturbed():
        for question in _QUESTIONS:
            cause = question(case)
            if cause is not None:
                causes.append(cause)
    return causes


def _renamed(case: _Case) -> Cause | None:
    """Pairs what has another name, and tells it."""
    missing = [name for name in case.was if name not in case.now.lines]
    added = [name for name in case.now.lines if name not in case.was]
    added = [name for name in added if _PACKED not in name]  # whose names are no one's choice
    names, words = _by_prefix(missing, added) or _by_content(missing, added, case)
    case.pairs = {name: names.get(name, name) for name in case.was if name in case.now.lines or name in names}
    case.changed = {name: new for name, new in case.pairs.items() if _differs(case.was[name], case.now.lines[new])}
    case.gone = [name for name in missing if name not in names]
    taken = set(names.values())
    case.new = [name for name in case.now.lines if name not in case.was and name not in taken]
    return Cause("renamed", words, tuple(names.values())) if names else None


def _differs(was: Line, now: Line) -> bool:
    return (was.dtype, was.shape, was.digest) != (now.dtype, now.shape, now.digest)


def _by_prefix(missing: list[str], added: list[str]) -> tuple[dict[str, str], str] | None:
    """All that is missing under one prefix, or without one."""
    if not missing or not added:
        return None
    for longer, shorter, verb in ((added, missing, "gained"), (missing, added, "lost")):
        heads = {name[: -len(shorter[0])] for name in longer if name.endswith(f".{shorter[0]}")}
        for head in heads:
            if all(f"{head}{name}" in set(longer) for name in shorter) and len(missing) <= len(added):
                names = {name: f"{head}{name}" for name in shorter}
                names = names if verb == "gained" else {long: short for short, long in names.items()}
                return names, f"{plural(len(names), 'name')} {verb} the prefix `{head}`"
    return None


def _by_content(missing: list[str], added: list[str], case: _Case) -> tuple[dict[str, str], str]:
    """What holds the same, bit by bit, one to one; of equal tensors in the order in which they stand."""
    waiting: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    for name in added:
        line = case.now.lines[name]
        waiting[line.dtype, line.shape, line.digest].append(name)
    names: dict[str, str] = {}
    for name in missing:
        line = case.was[name]
        same = waiting.get((line.dtype, line.shape, line.digest))
        if same:
            tail = name.rpartition(".")[2]
            new = next((other for other in same if other.rpartition(".")[2] == tail), same[0])
            same.remove(new)
            names[name] = new
    shown = next(iter(names.items()), ("", ""))
    has = "has" if len(names) == 1 else "have"
    return names, f"{plural(len(names), 'tensor')} {has} another name ({shown[0]} -> {shown[1]})"


def _folded(case: _Case) -> Cause | None:
    """Batch norms that are gone, and layers before them that changed."""
    norms = [name.removesuffix(".running_var") for name in case.gone if name.endswith(".running_var")]
    inside = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", *_STATISTICS)}
    weights = [name for name in case.changed if len(case.was[name].shape) > 1]
    biases = [name for name in (*case.changed, *case.new) if name.rpartition(".")[2] == "bias"]
    if not norms or not set(case.gone) <= inside or not weights or len(weights) > len(norms):
        return None
    owners = {name.rpartition(".")[0] for name in weights}
    if not all(name.rpartition(".")[0] in owners for name in biases):
        return None
    case.explained([*weights, *(name for name in biases if name in case.changed)])
    case.gone = []
    case.new = [name for name in case.new if name not in biases]
    return Cause("folded", f"{plural(len(norms), 'batch norm')} folded into the layers before", tuple(weights))


def _quantised(case: _Case) -> Cause | None:
    """Weights in integers or bytes, with scales beside them."""
    narrow = [name for name in case.changed if case.was[name].dtype in _FLOATS and _is_quantised(case.live(name))]
    beside = [
        name
        for name in case.new
        if _is_quantised(case.now.tensors[name])
        or name.rpartition(".")[2] in ("scale", "zero_point")
        or _PACKED in name
    ]
    packed = [name for name in beside if _is_quantised(case.now.tensors[name])]
    if not narrow and not packed:
        return None
    owners = {name.partition(f".{_PACKED}")[0] if _PACKED in name else name.rpartition(".")[0] for name in beside}
    gone = [name for name in case.gone if name.rpartition(".")[0] in owners]
    dtypes = {_stored(case.now.tensors[name]) for name in (*(case.pairs[name] for name in narrow), *packed)}
    case.explained(narrow)
    case.gone = [name for name in case.gone if name not in gone]
    case.new = [name for name in case.new if name.rpartition(".")[0] not in owners and name not in beside]
    count = len(narrow) or len(packed)
    return Cause(
        "quantised", f"quantised: {plural(count, 'weight')} in {', '.join(sorted(dtypes))}", tuple(narrow or packed)
    )


def _is_quantised(tensor: Tensor) -> bool:
    if tensor.is_quantized or type(tensor).__module__.startswith(("torchao.", "bitsandbytes.")):
        return True
    return tensor.dim() > 0 and _stored(tensor).startswith(_NARROW)


def _stored(tensor: Tensor) -> str:
    kind = type(tensor)
    if kind.__module__.startswith(("torchao.", "bitsandbytes.")):
        return kind.__name__
    return str(tensor.dtype).removeprefix("torch.")


def _adapted(case: _Case) -> Cause | None:
    """An adapter that lies beside what it adapts."""
    adapters = [name for name in case.new if "lora_" in name or "adapter" in name]
    if not adapters:
        return None
    case.new = [name for name in case.new if name not in adapters]
    kind = "a LoRA adapter" if any("lora_" in name for name in adapters) else "an adapter"
    return Cause("adapter", f"{kind} was added, unmerged: {plural(len(adapters), 'tensor')}", tuple(adapters))


def _recast(case: _Case) -> Cause | None:
    """Another dtype, and whether the cast explains the values."""
    cast = [
        name
        for name in case.changed
        if case.was[name].dtype != case.line(name).dtype
        and case.was[name].shape == case.line(name).shape
        and case.was[name].dtype in _FLOATS
        and case.line(name).dtype in _FLOATS
    ]
    if not cast:
        return None
    dtypes = sorted({f"{case.was[name].dtype} -> {case.line(name).dtype}" for name in cast})
    others = [name for name in cast if not _casts(case, name)]
    seen = [name for name in cast if case.both(name) is not None]
    case.explained(cast)
    only = "only the dtype changed" if not case.changed and not case.gone and not case.new else "the dtype changed"
    if others:
        said, only = f"the values of {first_and_more(others)} are others too", "the dtype changed"
    else:
        said = "the cast explains the values" if seen else "no values were kept to compare"
    return Cause("dtype", f"{only}: {', '.join(dtypes)} in {plural(len(cast), 'tensor')}; {said}", tuple(cast))


def _casts(case: _Case, name: str) -> bool:
    """Whether the values that were kept, cast as the tensor was, are what they are now."""
    both = case.both(name)
    if both is None:
        return True
    kinds = [getattr(torch, dtype) for dtype in (case.was[name].dtype, case.line(name).dtype)]
    old, new = (torch.from_numpy(values).to(kinds[0]).to(kinds[1]).float() for values in both)
    return torch.equal(old, new)


def _rounded(case: _Case) -> Cause | None:
    """The same dtype as before, but the values have gone through a narrower one."""
    for dtype in (torch.float16, torch.bfloat16):
        found = []
        for name in case.changed:
            both = case.both(name) if case.was[name].dtype in ("float32", "float64") else None
            if both is None:
                continue
            old, new = map(torch.from_numpy, both)
            if torch.equal(old.to(dtype).to(old.dtype), new) and torch.equal(
                _narrowed(case.live(name), dtype), case.live(name)
            ):
                found.append(name)
        if found:
            case.explained(found)
            words = f"the values of {plural(len(found), 'tensor')} went through {str(dtype).removeprefix('torch.')}"
            return Cause("rounded", words, tuple(found))
    return None


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).to(tensor.dtype)


def _rearranged(case: _Case) -> Cause | None:
    """The same values in another order: dimensions exchanged, one reversed, reshaped, or shuffled."""
    found = {name: how for name in case.changed if (how := _how(case, name)) is not None}
    if not found:
        return None
    case.explained(found)
    ways = list(dict.fromkeys(found.values()))
    shown = f"{first_and_more(list(found))} {'was' if len(found) == 1 else 'were'} {' or '.join(ways[:3])}"
    return Cause("permuted", shown, tuple(found))


def _how(case: _Case, name: str) -> str | None:
    was, now = case.was[name], case.line(name)
    if was.dtype != now.dtype or (sorted(was.shape) != sorted(now.shape) and _count(was) != _count(now)):
        return None
    if was.digest == now.digest:
        return f"reshaped from {was.shape} to {now.shape}"
    live = case.live(name).detach()
    if was.unordered and unordered(live) != was.unordered:
        return None
    if 1 < live.dim() <= 4:
        for order in permutations(range(live.dim())):
            if tuple(live.shape[i] for i in order) == was.shape and digest(live.permute(order)) == was.digest:
                # The live tensor, permuted so, is the locked one: it was permuted the other way.
                back = tuple(order.index(i) for i in range(live.dim()))
                return "transposed" if live.dim() == 2 else f"permuted (dimensions {back})"
    if live.shape == was.shape:
        for dim in range(live.dim()):
            if digest(live.flip(dim)) == was.digest:
                return f"reversed along dimension {dim}"
    return "given other places for the same values" if was.unordered else None


def _count(line: Line) -> int:
    return int(np.prod(line.shape, dtype=object)) if line.shape else 1


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS


def _rerun(case: _Case) -> Cause | None:
    """Running statistics that moved, as a forward in training mode moves them, while nothing else did."""
    moved = [name for name in case.changed if _is_statistic(name)]
    others = [name for name in case.changed if name not in moved]
    if not moved or _is_another(case, others) or all(initialisation(case.live(name)) for name in moved):
        return None
    case.explained(moved)
    far = _furthest(case, [name for name in moved if not name.endswith("num_batches_tracked")])
    batches = _furthest(case, [name for name in moved if name.endswith("num_batches_tracked")])
    norms = {name.rpartition(".")[0] for name in moved}
    only = "" if case.changed or case.gone or case.new else "only "
    words = f"{only}running statistics changed, of {plural(len(norms), 'batch norm')}"
    if batches:
        words += f": {plural(int(batches), 'forward')} in training mode since"
    if far:
        words += f", {'' if batches else 'moved '}by up to {far:.2g}"
    return Cause("statistics", words, tuple(moved))


def _furthest(case: _Case, names: Iterable[str]) -> float:
    """How far the values that were kept have moved at most."""
    pairs = [both for name in names if (both := case.both(name)) is not None]
    return max((float(np.nanmax(np.abs(new.astype(float) - old))) for old, new in pairs), default=0.0)


def _is_another(case: _Case, changed: Iterable[str]) -> bool:
    """Whether so much changed that it is another checkpoint: nine in ten of the matrices and kernels."""
    weights = [name for name, line in case.was.items() if len(line.shape) > 1 and _count(line)]
    weights = weights or [name for name in case.was if not _is_statistic(name)]
    return len(set(changed) & set(weights)) >= max(1, 0.9 * len(weights)) and len(weights) > 1


def _coarse(case: _Case) -> Cause | None:
    """Values that lie on few evenly spaced levels: quantised, and back."""
    found = [name for name in case.changed if len(case.was[name].shape) > 1 and _few_levels(case.live(name))]
    if not found:
        return None
    case.explained(found)
    return Cause("quantised", f"quantised and back: {plural(len(found), 'weight')} hold few levels", tuple(found))


def _few_levels(tensor: Tensor) -> bool:
    """Whether the whole, or each of the first rows, has at most 256 evenly spaced levels, and many more values."""
    if not tensor.is_floating_point():
        return False
    rows = tensor.detach().reshape(tensor.shape[0], -1).float()
    if _on_grid(rows.reshape(-1)[: 1 << 16]):
        return True
    return rows.shape[1] >= 16 and all(_on_grid(row) for row in rows[:8])


def _on_grid(values: Tensor) -> bool:
    levels = torch.unique(values).double()
    if not _FEWEST_LEVELS <= len(levels) <= _MOST_LEVELS or not bool(levels.isfinite().all()):
        return False
    spread, most = float(levels[-1] - levels[0]), float(levels.abs().max())
    # Of a few values no two may be neighbours on the grid: then its step is one that the usual ways of quantising give.
    steps = [float(levels.diff().min()), *(spread / n for n in (255, 15)), *(most / n for n in (127, 128, 7, 8))]
    for step in steps:
        places = (levels - levels[0]) / step
        if spread / step < _MOST_LEVELS and bool(((places - places.round()).abs() < 0.02).all()):
            return True
    return False


def _merged(case: _Case) -> Cause | None:
    """Matrices that moved by one of low rank: what is left of an adapter that was merged."""
    ranks = {name: rank for name in case.changed if (rank := _rank(case, name))}
    if not ranks or len(ranks) != len(case.changed):
        return None
    case.explained(list(ranks))
    words = f"an update of rank {max(ranks.values())} was merged into {plural(len(ranks), 'weight')} (a LoRA adapter)"
    return Cause("merged", words, tuple(ranks))


def _rank(case: _Case, name: str) -> int:
    """The rank of what was added to a matrix, where that is low; else 0."""
    both = case.both(name) if len(case.was[name].shape) == 2 else None
    if both is None or min(both[0].shape) < 8 or case.line(name).dtype not in ("float32", "float64"):
        return 0
    old, new = (values.astype(float) for values in both)
    moved = new - old
    if np.mean(moved != 0) < 0.5 or not np.isfinite(moved).all() or np.ptp(moved) < 1e-3 * np.abs(moved).max():
        return 0
    singular = np.linalg.svd(moved, compute_uv=False)
    noise = 1e-6 * np.abs(new).max() * max(moved.shape) ** 0.5
    rank = int((singular > max(noise, 1e-4 * singular[0])).sum())
    return rank if rank <= 0.75 * min(moved.shape) else 0


def _unloaded(case: _Case) -> Cause | None:
    """What holds what it was born with: zeros, ones, or a default's draw."""
    fresh = {name: words for name in case.changed if (words := initialisation(case.live(name)))}
    if _is_another(case, [name for name in case.changed if name not in fresh]):
        # In another checkpoint a bias may well be zero.
        fresh = {name: words for name, words in fresh.items() if len(case.was[name].shape) > 1}
    # Of a small tensor beside such a one, its bias say, the distribution cannot be told.
    owners = {name.rpartition(".")[0] for name in fresh}
    small = [
        name
        for name in case.changed
        if name.rpartition(".")[0] in owners and name not in fresh and _count(case.was[name]) < 512
    ]
    if not fresh:
        return None
    names = [name for name in case.changed if name in fresh or name in small]
    whole = _is_another(case, names) and len(names) >= 0.9 * len(case.changed)
    case.explained(names)
    ways = ", ".join(dict.fromkeys(fresh.values()))
    if whole:
        case.explained(list(case.changed))
        return Cause(
            "unloaded",
            f"no checkpoint was loaded: {plural(len(names), 'tensor')} at initial values ({ways})",
            tuple(names),
        )
    count = f"{len(names)} of {plural(len(case.was), 'tensor')} not loaded"
    return Cause("partial", f"{count}: {first_and_more(names)}, at initial values ({ways})", tuple(names))


def _another(case: _Case) -> Cause | None:
    """What nothing above explains: all, or some."""
    if not case.changed:
        return None
    names = tuple(case.changed)
    shapes = [name for name in names if case.was[name].shape != case.line(name).shape]
    if _is_another(case, names):
        case.changed = {}
        return Cause(
            "checkpoint",
            f"another checkpoint: {len(names)} of {plural(len(case.was), 'tensor')} differ{_nearness(case, names)}",
            names,
        )
    case.changed = {}
    how = ""
    if shapes:
        how = f" (shape {case.was[shapes[0]].shape} -> {case.line(shapes[0]).shape})"
    elif far := _furthest(case, names):
        how = f", by up to {far:.2g}"
    return Cause(
        "values", f"{len(names)} of {plural(len(case.was), 'tensor')} changed: {first_and_more(names)}{how}", names
    )


def _nearness(case: _Case, names: Iterable[str]) -> str:
    """How far another checkpoint lies, where it is near: the same one trained on, say."""
    pairs = [both for name in names if len(case.was[name].shape) > 1 and (both := case.both(name)) is not None]
    if not pairs:
        return ""
    old, new = (np.concatenate([each.ravel().astype(float) for each in side]) for side in zip(*pairs, strict=True))
    norm = float(np.linalg.norm(old))
    far = float(np.linalg.norm(new - old)) / norm if norm else float("inf")
    return f", but by {far:.1%} only: the same one, trained further?" if far < 0.5 else ""


def _left_over(case: _Case) -> Cause | None:
    """Tensors that are gone or new for no reason that is known."""
    said = [
        f"{plural(len(names), 'tensor')} {verb} ({first_and_more(names)})"
        for names, verb in ((case.gone, "missing"), (case.new, "added"))
        if names
    ]
    return Cause("tensors", " and ".join(said), (*case.gone, *case.new)) if said else None


_QUESTIONS: tuple[Callable[[_Case], Cause | None], ...] = (
    _renamed,
    _quantised,
    _folded,
    _adapted,
    _recast,
    _rounded,
    _rearranged,
    _rerun,
    _coarse,
    _merged,
    _unloaded,
    _another,
    _left_over,
)


def told(title: str, causes: list[Cause]) -> tuple[str, str, dict[str, object]]:
    """The headline, the finding and the details of what became of a model."""
    if [cause.kind for cause in causes] == ["renamed"]:
        words = f"only the names changed: {causes[0].words}"
    else:
        words = "; ".join(cause.words for cause in causes) or "its digest is another, and its tensors are the same"
    details: dict[str, object] = {"causes": {cause.kind: list(cause.tensors[:_MOST_NAMES]) for cause in causes}}
    return f"{title}: {words}", f"{title}: {words}", details
