"""Fixes for training mode and gradients, and the operations that show that a test trains a model."""

from __future__ import annotations

from pytest_evalmode.trace import ForwardCall, ModelOperation, Observation, Trace


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
    model = calls[0].ran.model
    backward = first_backward(trace, model)
    names = {observation.module.name for observation in relevant}
    switches = [o.since for call in calls for o in call.training if o.module.name in names and o.switched_in_window]
    lines = list(dict.fromkeys(filter(None, switches)))
    own = [call.at for call in calls if call.at in lines]
    forwards = sum(each.forwards for each in trace.models if each.name == model)
    if any(observation.switched_in_forward for observation in relevant):  # `eval()` before the forward changes nothing
        remedy = (
            f"do not switch modes in the forward ({lines[0]})"
            if lines
            else "create the module in __init__: one that a forward creates is in training mode"
        )
    elif own:
        remedy = f"call eval() where {own[0]} calls train()"
    elif lines:
        remedy = f"call {target}.eval() after {' and after '.join(map(str, lines))}"
    elif forwards > sum(call.count for call in calls) and calls[0].at:  # it ran in eval mode too
        remedy = f"call {target}.eval() before the forward at {calls[0].at}"
    else:
        remedy = f"call {target}.eval() before the first forward"
    if backward:
        return f"{pause_if(f'the test trains on purpose ({format_operation(backward)})')}; otherwise {remedy}"
    if any(call.returned_losses for call in calls):
        return f"{pause_if('the test needs the losses that training mode returns')}; otherwise {remedy}"
    return f"{pause_if('the test needs training mode')}; otherwise {remedy}" if lines else remedy


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
