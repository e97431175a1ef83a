"""Three questions that a test may ask of a model: plain functions, which assert.

Each runs a copy of the model under `inference()`, on a fork of torch's random generators: what it does leaves no trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.probes.nested_tensors import PADDING, mapped, other, pick, size_of, with_padding
from pytest_evalmode.probes.output_differences import Closeness, assert_rows, assert_same, first_difference
from pytest_evalmode.probes.probe_runs import call, copy_of, probed
from pytest_evalmode.rules.wording import first_and_more


def assert_repeatable(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """The model gives the same again, bit by bit: at once, and after other inputs, which a cache might remember.

    Raises AssertionError, which names the first module that gave otherwise.
    """
    with probed(model, "assert_repeatable") as run:
        first = run(*inputs, **named)
        assert_same(first, run(*inputs, **named), "a second time")
        others, named_others = mapped((inputs, named), other)
        run(*others, **named_others)
        assert_same(first, run(*inputs, **named), "again after other inputs")


def assert_batch_independent(
    model: nn.Module, batch: Any, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """Each sample gives what it gives alone, in another order, and, of tokenised text, with more padding.

    `batch` is a tensor, a sequence of the model's arguments or a mapping of them by name, with samples along the first
    dimension.  What is close is the same: kernels for other sizes add in another order.  Raises AssertionError, which
    names the sample that moved, and the first module in which it did.
    """
    if (rtol is None) != (atol is None):
        raise ValueError(f"assert_batch_independent(): rtol={rtol!r}, atol={atol!r}: give both, or neither")
    size = size_of(batch)
    with probed(model, "assert_batch_independent") as run:
        whole = call(run, batch)
        close = Closeness(rtol, atol)
        for i in range(size):
            assert_rows(whole, call(run, pick(batch, [i], size)), [i], size, close, "alone")
        order = list(reversed(range(size)))
        assert_rows(whole, call(run, pick(batch, order, size)), order, size, close, "in a batch in reverse order")
        padded = with_padding(batch)
        if padded is not None:
            rows = list(range(size))
            assert_rows(whole, call(run, padded), rows, size, close, f"with {PADDING} more of padding")


def assert_eval_matters(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """The model gives otherwise in training mode: a test over it would notice a forgotten `eval()`.

    Raises AssertionError, which says what in it depends on the mode, if anything does.
    """
    with probed(model, "assert_eval_matters") as run:
        told = run(*inputs, **named)
    with copy_of(model, "assert_eval_matters") as (trained, run), torch.no_grad():
        trained.train()
        trained_told = run(*inputs, **named)
    if first_difference(told.output, trained_told.output) is not None:
        return
    sensitive = [
        f"{path} ({modules.type_name(part)})"
        for path, part in modules.walk(trained)
        if mode_dependence.is_mode_dependent(part)
    ]
    ran = {path for path, _ in trained_told.modules}
    if not sensitive:
        why = "nothing in it depends on the mode"
    elif not any(name.partition(" ")[0] in ran for name in sensitive):
        why = f"{first_and_more(sensitive)} did not run"
    else:
        why = f"{first_and_more(sensitive)} changed nothing"
    raise AssertionError(f"{modules.type_name(model)} gives the same in training mode as in eval mode: {why}")
