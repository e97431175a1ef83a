"""Every module of torch.nn with the constructor arguments and inputs of torch's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0", "expecttest==0.3.0")


def architectures() -> Iterator[Architecture]:
    """Yield each module of torch.nn in each of its configurations."""
    import torch
    from torch.testing._internal.common_modules import module_db

    for info in module_db:
        names = set[str]()
        torch.manual_seed(0)
        for sample in info.module_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
        ):
            name = "-".join(filter(None, [info.name.removeprefix("nn."), sample.desc]))
            if sample.forward_input is None or name in names:
                continue
            names.add(name)
            made = sample.constructor_input
            yield Architecture(
                name,
                partial(info.module_cls, *made.args, **made.kwargs),
                partial(_inputs, sample.forward_input.args, sample.forward_input.kwargs),
                _call,
            )


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs}


def _call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return model(*args, **kwargs)
