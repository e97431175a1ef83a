"""Functions that assert how a model behaves in eval mode.

Each probe runs a copy of the model under `inference()` and forks torch's random generators, so the model, the inputs
and the generators stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models import mode_dependence
from pytest_evalmode.probes.functions import assert_function_repeatable
from pytest_evalmode.probes.nested_tensors import (
    PADDING,
    add_padding,
    batch_size,
    different_tensor,
    map_tensors,
    select_samples,
)
from pytest_evalmode.probes.output_differences import (
    Tolerance,
    assert_same,
    first_difference,
    first_different_sample,
)
from pytest_evalmode.probes.probe_runs import copied, copied_for_inference, run_batch
from pytest_evalmode.probes.training_run import run_in_training_mode
from pytest_evalmode.rules.wording import first_and_more


def assert_repeatable(
    evaluate: Callable[..., Any], *args: Any, rtol: float | None = None, atol: float | None = None, **named: Any
) -> None:
    """Assert that a model or a function returns the same result again.

    A model runs twice with the same inputs, then with other inputs, and once more with the first inputs.  This detects,
    for example, random draws in eval mode and caches that keep values of earlier inputs.

    A function, such as a whole evaluation, runs twice under different global seeds of torch, Python and NumPy.  This
    detects, for example, random data, and metrics that depend on a random order.  The models among its arguments are
    copied.

    Args:
        evaluate: The model, of which a copy runs in eval mode, or the function.
        *args: Its positional arguments; for a model, tensors or mappings and sequences of them.
        rtol: Relative tolerance.  By default, the results must be the same bit by bit.
        atol: Absolute tolerance.
        **named: Its keyword arguments.

    Raises:
        AssertionError: A result differs.  The message names the first module that differs or, for a function, the path
            in the result and the lines that drew random numbers.
        HygieneError: The inference was not clean.
        TypeError: `evaluate` cannot be called, or a model cannot be copied.

    Example:
        >>> assert_repeatable(model, torch.ones(8, 3, 32, 32))
        >>> assert_repeatable(accuracy, model, loader, atol=1e-6)
    """
    tolerance = Tolerance(rtol or 0.0, atol or 0.0)
    if not isinstance(evaluate, nn.Module) and callable(evaluate):
        assert_function_repeatable(evaluate, args, named, tolerance)
        return
    with copied_for_inference(evaluate, "assert_repeatable") as run:
        difference = partial(first_difference, tolerance=tolerance)
        first = run(*args, **named)
        assert_same(first, run(*args, **named), "in a second run", difference)
        other_args, other_named = map_tensors((args, named), different_tensor)
        run(*other_args, **other_named)
        assert_same(first, run(*args, **named), "after a run with other inputs", difference)


def assert_batch_independent(
    model: nn.Module, batch: Any, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """Assert that the output of each sample does not depend on the other samples of its batch.

    Each sample runs alone, then all samples run in reverse order and, for tokenized text, with more padding.  This
    detects, for example, batch statistics in eval mode and a missing attention mask.

    Args:
        model: The model.  A copy of it runs in eval mode.
        batch: A tensor of shape `(samples, ...)`, a list or tuple of the forward's arguments, or a mapping of its
            keyword arguments.  At least two samples along the first dimension.
        rtol: Relative tolerance.  By default, differences as small as rounding errors are allowed, because kernels sum
            in a different order for a different batch size.
        atol: Absolute tolerance.  Pass both tolerances, or neither.

    Raises:
        AssertionError: A sample's output differs.  The message names the sample and the first module that differs.
        HygieneError: The inference was not clean.
        TypeError: `model` is not a module, or cannot be copied.
        ValueError: The batch has fewer than two samples, or only one tolerance was passed.

    Example:
        >>> assert_batch_independent(model, {"input_ids": ids, "attention_mask": mask})
    """
    if (rtol is None) != (atol is None):
        raise ValueError(f"assert_batch_independent(): pass both rtol and atol, or neither; got {rtol=}, {atol=}")
    size = batch_size(batch)
    with copied_for_inference(model, "assert_batch_independent") as run:
        whole = run_batch(run, batch)

        def check(other_batch: Any, rows: list[int], when: str) -> None:
            difference = partial(first_different_sample, rows=rows, size=size, tolerance=Tolerance(rtol, atol))
            assert_same(whole, run_batch(run, other_batch), when, difference)

        for i in range(size):
            check(select_samples(batch, [i], size), [i], "when run alone")
        order = list(reversed(range(size)))
        check(select_samples(batch, order, size), order, "in a batch in reverse order")
        padded = add_padding(batch)
        if padded is not None:
            check(padded, list(range(size)), f"with {PADDING} more padding tokens")


def assert_eval_matters(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """Assert that a model returns a different output in training mode than in eval mode.

    If it does not, a test of this model cannot detect a forgotten `eval()` from the output.

    Args:
        model: The model.  Copies of it run in eval mode and in training mode.
        *inputs: Positional arguments of its forward: tensors, or mappings and sequences of them.
        **named: Keyword arguments of its forward.

    Raises:
        AssertionError: The outputs are the same.  The message names the modules that depend on the mode, if any.
        HygieneError: The inference in eval mode was not clean.
        TypeError: `model` is not a module, or cannot be copied.

    Example:
        >>> assert_eval_matters(model, torch.ones(8, 3, 32, 32))
    """
    with copied_for_inference(model, "assert_eval_matters") as run:
        evaluated = run(*inputs, **named)
    with copied(model, "assert_eval_matters") as (trained_model, run):
        trained = run_in_training_mode(trained_model, partial(run, *inputs, **named))
    if first_difference(evaluated.output, trained.output, Tolerance()) is not None:
        return
    mode_dependent = [
        f"{path} ({modules.type_name(part)})"
        for path, part in modules.walk(trained_model)
        if mode_dependence.is_mode_dependent(part)
    ]
    ran = {path for path, _ in trained.modules}
    if not mode_dependent:
        why = "none of its modules depends on the mode"
    elif not any(name.partition(" ")[0] in ran for name in mode_dependent):
        why = f"{first_and_more(mode_dependent)} did not run"
    else:
        why = f"{first_and_more(mode_dependent)} had no effect"
    raise AssertionError(f"{modules.type_name(model)} gives the same output in training mode as in eval mode: {why}")
