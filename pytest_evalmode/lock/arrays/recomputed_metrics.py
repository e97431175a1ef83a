"""Metrics computed again from the locked inputs, which shows how much of their change the inputs explain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from pytest_evalmode.lock.arrays.batch_arrays import arrays, rebuild_batch
from pytest_evalmode.lock.arrays.comparison import Pair
from pytest_evalmode.lock.arrays.named_batches import MetricFunction, NamedBatches
from pytest_evalmode.lock.lock_file import Entry

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]


def describe_recomputed_metrics(
    again: MetricFunction,
    inputs: NamedBatches,
    locked: Mapping[str, Entry],
    samples: Arrays,
    metrics: Mapping[str, Entry],
    pause_guard: Callable[[], AbstractContextManager[None]],
) -> str:
    """Compute metrics from the locked inputs and from this run's, and describe both.

    Args:
        again: The user's function, which computes the metrics from a batch.
        inputs: The inputs of this run.
        locked: The locked arrays of these inputs, by path.
        samples: The stored samples of these inputs, by path.
        metrics: The locked metrics, by path.
        pause_guard: The context manager for the calls of `again`.

    Returns:
        A sentence for the message; empty if too little is stored, or no metric is a number.
    """
    both = _common_samples(inputs, locked, samples)
    if both is None:
        return ""
    # The locked metric comes from all inputs, so only all of them can explain a share of its change.
    has_all_inputs = all(entry["samples"] == len(both[0][path]) for path, entry in locked.items())
    with pause_guard():
        return _describe(again, inputs.first_batch, *both, metrics if has_all_inputs else {})


def _common_samples(inputs: NamedBatches, locked: Mapping[str, Entry], samples: Arrays) -> tuple[Arrays, Arrays] | None:
    """Return the same samples as locked and as they are now; None if they are not stored in full."""
    if locked.keys() != inputs.streams.keys():
        return None
    pairs = {path: Pair(locked[path], stream, samples.get(path), None) for path, stream in inputs.streams.items()}
    common = {path: pair.common for path, pair in pairs.items() if pair.common is not None}
    which = {None if indices is None else tuple(indices) for _, _, indices in common.values()}
    if len(common) < len(pairs) or len(which) != 1 or any(pair.stream.is_scalar for pair in pairs.values()):
        return None
    # A sample that was too large was cropped, and is not an input of the model.
    are_whole = all(
        str(old.shape[1:]) == locked[path]["shape"] and new.shape[1:] == pairs[path].stream.shape
        for path, (old, new, _) in common.items()
    )
    n = min(len(values) for pair in common.values() for values in pair[:2])
    if not n or not are_whole:
        return None
    return {path: old[:n] for path, (old, _, _) in common.items()}, {
        path: new[:n] for path, (_, new, _) in common.items()
    }


def _describe(again: MetricFunction, batch: object, old: Arrays, new: Arrays, metrics: Mapping[str, Entry]) -> str:
    n = len(next(iter(old.values())))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            with_old, with_new = (arrays(again(rebuild_batch(batch, values))) for values in (old, new))
    except Exception as error:  # the user's function may not accept so few samples
        return f"again= failed on {n} samples: {type(error).__name__}: {error}"
    names = [name for name, value in with_old.items() if value.size == 1 and name in with_new]
    descriptions = []
    for name in names:
        old_metric, new_metric = with_old[name].item(), with_new[name].item()
        words = f"{old_metric:.6g} with the locked inputs, {new_metric:.6g} with this run's"
        locked_metric = metrics.get(name, {}).get("value", new_metric)
        change = locked_metric - new_metric
        if change != 0 and 0 <= (share := (old_metric - new_metric) / change) <= 1.005:
            words += f"; the inputs explain {'all' if share > 0.995 else f'{share:.0%}'} of the change"
        descriptions.append(words if len(with_old) == 1 else f"{name}: {words}")
    return f"recomputed on {n} samples: {'; '.join(descriptions)}" if descriptions else ""
