"""Fixes for training mode and gradients, and the operations that show that a test trains a model."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_evalmode.trace import ForwardCall, ModelOperation, Observation, Site, Trace


def first_optimizer_step(trace: Trace, model: str | None) -> ModelOperation | None:
    """Return the first step of an optimizer that holds parameters of a model."""
    return next((step for step in trace.steps if model in step.models), None)


def first_backward(trace: Trace, model: str | None) -> ModelOperation | None:
    """Return the first call that computed gradients from the graph of a model's forward."""
    return next((call for call in trace.gradients if model in call.models), None)


def pause_remedy(step: ModelOperation) -> str:
    """Return the remedy for a test that makes an optimizer step."""
    return f"{pause_if('the test trains on purpose')}; otherwise remove the optimizer step ({format_operation(step)})"


def pause_if(condition: str) -> str:
    """Return the advice to pause the guard under a condition: `if the test trains on purpose, ...`."""
    return f"if {condition}, wrap that part in `with evalmode.paused():`"


def mode_remedy(trace: Trace, calls: list[ForwardCall], relevant: list[Observation], target: str) -> str:
    """Return the remedy for a model in training mode: the line that must not switch it, or where to call `eval()`.

    `relevant` are the modules that the violation names, and `target` the expression on which to call `eval()`.
    """
    backward = first_backward(trace, calls[0].ran.model)
    lines = _switch_lines(calls, {observation.module.name for observation in relevant})
    own = [call.at for call in calls if call.at in lines]
    if any(observation.switched_in_forward for observation in relevant):
        remedy = _fix_in_forward(lines)
    elif own:
        remedy = f"call eval() where {own[0]} calls train()"
    elif lines:
        remedy = f"call {target}.eval() after {' and after '.join(map(str, lines))}"
    elif _ran_in_eval_mode(trace, calls) and calls[0].at:
        remedy = f"call {target}.eval() before the forward at {calls[0].at}"
    else:
        remedy = f"call {target}.eval() before the first forward"
    if backward:
        return f"{pause_if(f'the test trains on purpose ({format_operation(backward)})')}; otherwise {remedy}"
    if any(call.returned_losses for call in calls):
        return f"{pause_if('the test needs the losses that training mode returns')}; otherwise {remedy}"
    return f"{pause_if('the test needs training mode')}; otherwise {remedy}" if lines else remedy


def _switch_lines(calls: list[ForwardCall], modules: set[str]) -> list[Site]:
    """Return the lines of the window that switched these modules to training mode."""
    observations = (observation for call in calls for observation in call.training)
    lines = (o.since for o in observations if o.module.name in modules and o.switched_in_window)
    return list(dict.fromkeys(line for line in lines if line is not None))


def _fix_in_forward(lines: Sequence[Site]) -> str:
    """Return the remedy for a forward that switches or creates modules: `eval()` before it changes nothing."""
    if lines:
        return f"do not switch modes in the forward ({lines[0]})"
    return "create the module in __init__: one that a forward creates is in training mode"


def _ran_in_eval_mode(trace: Trace, calls: list[ForwardCall]) -> bool:
    """Return whether the model ran in eval mode, too."""
    forwards = sum(model.forwards for model in trace.models if model.name == calls[0].ran.model)
    return forwards > sum(call.count for call in calls)


def gradient_remedy(backward: ModelOperation) -> str:
    """Return the remedy for a test that computes gradients of a model in eval mode."""
    return (
        f"{pause_if(f'the test trains on purpose ({format_operation(backward)})')}; "
        "if gradients are its purpose (saliency, an attack), pass allow=['grad-mode']"
    )


def format_operation(operation: ModelOperation) -> str:
    """Format an operation with its line: `SGD.step() at tests/test_net.py:12`."""
    return f"{operation.name} at {operation.at}" if operation.at else operation.name


def operation_details(**operations: ModelOperation | None) -> dict[str, str]:
    """Return the operations that are not None, formatted for a violation's `details`."""
    return {key: format_operation(operation) for key, operation in operations.items() if operation is not None}
