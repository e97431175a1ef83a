"""Operations that show that a test trains a model or computes gradients, and the fix for training."""

from __future__ import annotations

from pytest_evalmode.trace import ModelOperation, Trace


def first_optimizer_step(trace: Trace, model: str | None) -> ModelOperation | None:
    """Return the first step of an optimizer that holds parameters of a model."""
    return next((step for step in trace.steps if model in step.models), None)


def first_backward(trace: Trace, model: str | None) -> ModelOperation | None:
    """Return the first call that computed gradients from the graph of a model's forward."""
    return next((call for call in trace.gradients if model in call.models), None)


def pause_remedy(step: ModelOperation) -> str:
    """Return the remedy for a test that makes an optimizer step."""
    return (
        "if the test trains on purpose, wrap that part in `with evalmode.paused():`; "
        f"otherwise remove the optimizer step ({format_operation(step)})"
    )


def format_operation(operation: ModelOperation) -> str:
    """Format an operation with its line: `SGD.step() at tests/test_net.py:12`."""
    return f"{operation.name} at {operation.at}" if operation.at else operation.name


def operation_details(**operations: ModelOperation | None) -> dict[str, str]:
    """Return the operations that are not None, formatted for a violation's `details`."""
    return {key: format_operation(operation) for key, operation in operations.items() if operation is not None}
