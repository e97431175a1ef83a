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
    samples: Arrays,
    metrics: Mapping[str, Entry],
    pause_guard: Callable[[], AbstractContextManager[None]],
) -> str:
    """Compute metrics from the locked inputs and from this run's, and describe both.

    `samples` are the stored samples of the inputs, and `metrics` the entries of the metrics, both by path. The result
    is empty if too little is stored, or no metric is a number.
    """
    both = _common_samples(inputs, samples)
    if both is None:
        return ""
    n = len(next(iter(both[0].values())))
    with pause_guard():
        try:
            with torch.random.fork_rng(), torch.no_grad():
                with_old, with_new = (arrays(again(rebuild_batch(inputs.first_batch, each))) for each in both)
        except Exception as error:  # the user's function may not accept so few samples
            return f"again= failed on {n} samples: {type(error).__name__}: {error}"
    # The locked metric comes from all inputs, so only all of them can explain a share of its change.
    has_all_inputs = all(entry["samples"] == n for entry in inputs.locked.values())
    descriptions = []
    for name in [name for name, value in with_old.items() if value.size == 1 and name in with_new]:
        old_metric, new_metric = with_old[name].item(), with_new[name].item()
        words = f"{old_metric:.6g} with the locked inputs, {new_metric:.6g} with this run's"
        change = metrics.get(name, {}).get("value", new_metric) - new_metric if has_all_inputs else 0
        if change != 0 and 0 <= (share := (old_metric - new_metric) / change) <= 1.005:
            words += f"; the inputs explain {'all' if share > 0.995 else f'{share:.0%}'} of the change"
        descriptions.append(words if len(with_old) == 1 else f"{name}: {words}")
    return f"recomputed on {n} samples: {'; '.join(descriptions)}" if descriptions else ""


def _common_samples(inputs: NamedBatches, samples: Arrays) -> tuple[Arrays, Arrays] | None:
    """Return the same samples as locked and as they are now; None if they are not stored in full."""
    locked = inputs.locked
    old, new, which = {}, {}, set()
    for path, stream in inputs.streams.items() if inputs.streams.keys() == locked.keys() else ():
        common = Pair(path, locked[path], stream, samples).common
        if common is None or stream.is_scalar:
            return None
        old[path], new[path], indices = common
        which.add(str(indices))
        # A sample that was too large was cropped, and is not an input of the model.
        if str(old[path].shape[1:]) != locked[path]["shape"] or new[path].shape[1:] != stream.shape:
            return None
    if len(which) != 1:
        return None
    n = min(map(len, (*old.values(), *new.values())))
    return {path: each[:n] for path, each in old.items()}, {path: each[:n] for path, each in new.items()}
