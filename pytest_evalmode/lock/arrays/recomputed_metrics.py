"""Metrics made again of the inputs that were locked: how much of what they lost is theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from pytest_evalmode.lock.arrays.named_batches import MetricFunction, NamedBatches
from pytest_evalmode.lock.arrays.packing import restore_values
from pytest_evalmode.lock.inputs.batch_arrays import arrays, rebuild_batch
from pytest_evalmode.lock.lock_file import Entry

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]


def describe_recomputed_metrics(
    again: MetricFunction,
    inputs: NamedBatches,
    was: Mapping[str, Entry],
    kept: Arrays,
    metrics: Mapping[str, Entry],
    aside: Callable[[], AbstractContextManager[None]],
) -> str:
    """What metrics are with the inputs that were locked, and with this run's; empty where they are no numbers.

    `was` is what was locked of the inputs, `kept` what was kept of them, and `metrics` are what was locked of these.
    They are made `aside`.
    """
    both = _first_of_both(inputs, was, kept)
    if both is None:
        return ""
    whole = all(entry["samples"] == len(both[0][path]) for path, entry in was.items())
    with aside():
        return _words(again, inputs.first_batch, *both, metrics if whole else {})


def _first_of_both(inputs: NamedBatches, was: Mapping[str, Entry], kept: Arrays) -> tuple[Arrays, Arrays] | None:
    """The first samples, as they were locked and as they are now; None where these were not kept whole."""
    now = inputs.streams
    old = {path: restore_values(kept[path], was[path]["dtype"]) for path in was if path in kept}
    new = {path: stream.stored_values() for path, stream in now.items()}
    if old.keys() != new.keys() or old.keys() != was.keys():
        return None
    # What is larger than its room was cut: that is no input.
    whole = all(
        str(old[path].shape[1:]) == was[path]["shape"] and new[path].shape[1:] == now[path].shape for path in old
    )
    n = min((len(values) for values in (*old.values(), *new.values())), default=0)
    if not n or not whole or any(stream.is_scalar for stream in now.values()):
        return None
    return {path: values[:n] for path, values in old.items()}, {path: values[:n] for path, values in new.items()}


def _words(again: MetricFunction, batch: object, old: Arrays, new: Arrays, locked: Mapping[str, Entry]) -> str:
    """`locked` is what the metrics were, if these are all the inputs."""
    n = len(next(iter(old.values())))
    try:
        with torch.random.fork_rng(), torch.no_grad():
            with_old, with_new = (arrays(again(rebuild_batch(batch, values))) for values in (old, new))
    except Exception as error:  # of a function of the test's own, on fewer samples than it is used to
        return f"again= failed on the first {n} samples: {type(error).__name__}: {error}"
    numbers = [name for name, value in with_old.items() if value.size == 1 and name in with_new]
    said = []
    for name in numbers:
        first, last = with_old[name].item(), with_new[name].item()
        words = f"{first:.6g} with the inputs that were locked, {last:.6g} with this run's"
        value = locked.get(name, {}).get("value", last)
        if value != last and 0 <= (share := (first - last) / (value - last)) <= 1.005:
            words += f": they explain {'all' if share > 0.995 else f'{share:.0%}'} of it"
        said.append(words if len(with_old) == 1 else f"{name}: {words}")
    return f"made again of the first {n} samples: {'; '.join(said)}" if said else ""
