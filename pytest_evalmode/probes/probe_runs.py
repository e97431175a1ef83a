"""A copy of a model is run, and what each of its modules gave is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pytest_evalmode.evaluation import inference
from pytest_evalmode.observe import modules
from pytest_evalmode.probes.nested_tensors import fresh, mapped, tensors_of


@dataclass(slots=True)
class Run:
    """What a model gave, and what each of its modules did, in the order in which they ended."""

    output: dict[str, Tensor]
    modules: list[tuple[str, dict[str, Tensor]]] = field(default_factory=list)


@contextmanager
def probed(model: nn.Module, probe: str) -> Iterator[Callable[..., Run]]:
    """Runs a copy of a model as it is meant to be run."""
    with copy_of(model, probe) as (copied, run), inference(copied):
        yield run


@contextmanager
def copy_of(model: nn.Module, probe: str) -> Iterator[tuple[nn.Module, Callable[..., Run]]]:
    """A copy of a model, and what runs it on copies of its inputs; random numbers are forked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{probe}(model): {model!r:.80} is a {type(model).__name__}; it takes a torch.nn.Module")
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{probe}(): {modules.type_name(model)} cannot be copied, so that it could not be left as it is"
        ) from error
    devices = sorted({t.device.index or 0 for t in copied.parameters() if t.device.type == "cuda"})
    names = {id(part): path for path, part in modules.walk(copied)}
    with torch.random.fork_rng(devices=devices):

        def run(*inputs: Any, **named: Any) -> Run:
            found: list[tuple[str, dict[str, Tensor]]] = []

            def keep(module: nn.Module, _: object, output: object) -> None:
                if id(module) in names:
                    found.append((names[id(module)], tensors_of(output)))

            # For all modules at once: a hook of a module's own would turn torch's fast paths off.
            handle = register_module_forward_hook(keep)
            try:
                own, own_named = mapped((inputs, named), fresh)
                return Run(tensors_of(copied(*own, **own_named)), found)
            finally:
                handle.remove()

        yield copied, run


def call(run: Callable[..., Run], batch: Any) -> Run:
    """Run on a batch: a tensor, a sequence of arguments or a mapping of them by name."""
    if isinstance(batch, Mapping):
        return run(**batch)
    return run(*batch) if isinstance(batch, list | tuple) else run(batch)
