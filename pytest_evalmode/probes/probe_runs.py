"""Runs of a copied model that record the output of each module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pytest_evalmode.evaluation import inference
from pytest_evalmode.guards import require_module
from pytest_evalmode.observe import modules
from pytest_evalmode.probes.nested_tensors import copy_tensor, copy_tensors, map_tensors


class Run(NamedTuple):
    """The output of a model, and the outputs of its modules, ordered by the end of their forwards."""

    output: dict[str, Tensor]
    modules: list[tuple[str, dict[str, Tensor]]]


@contextmanager
def copied_for_inference(model: nn.Module, probe: str) -> Iterator[Callable[..., Run]]:
    """Yield a function that runs a copy of a model under `inference()`."""
    with copied(model, probe) as (model_copy, run), inference(model_copy):
        yield run


@contextmanager
def copied(model: nn.Module, probe: str) -> Iterator[tuple[nn.Module, Callable[..., Run]]]:
    """Yield a copy of a model and a function that runs it on copies of its inputs, with forked random generators.

    `probe` is the name of the calling probe, for errors.
    """
    require_module(f"{probe}(model)", model)
    try:
        model_copy = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{probe}(): cannot copy {modules.type_name(model)}; a probe runs a copy to leave the model unchanged"
        ) from error
    devices = sorted({t.device.index or 0 for t in model_copy.parameters() if t.device.type == "cuda"})
    names = {id(part): path for path, part in modules.walk(model_copy)}
    with torch.random.fork_rng(devices=devices):

        def run(*inputs: Any, **named: Any) -> Run:
            outputs: list[tuple[str, dict[str, Tensor]]] = []

            def record(module: nn.Module, _: object, output: object) -> None:
                if id(module) in names:
                    outputs.append((names[id(module)], copy_tensors(output)))

            # A global hook, because hooks on the modules would disable torch's fast paths.
            handle = register_module_forward_hook(record)
            try:
                input_copies, named_copies = map_tensors((inputs, named), copy_tensor)
                return Run(copy_tensors(model_copy(*input_copies, **named_copies)), outputs)
            finally:
                handle.remove()

        yield model_copy, run


def run_batch(run: Callable[..., Run], batch: Any) -> Run:
    """Run a model on a batch: a tensor, a sequence of arguments or a mapping of keyword arguments."""
    if isinstance(batch, Mapping):
        return run(**batch)
    return run(*batch) if isinstance(batch, list | tuple) else run(batch)
