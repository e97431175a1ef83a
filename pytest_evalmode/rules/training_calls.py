"""What a test does on purpose: it trains a model, or uses the gradients of one."""

from __future__ import annotations

from pytest_evalmode.trace import ModelOperation, Trace


def first_optimizer_step(trace: Trace, model: str | None) -> ModelOperation | None:
    """The first step of an optimizer that holds parameters of a model."""
    return next((step for step in trace.steps if model in step.models), None)


def first_backward(trace: Trace, model: str | None) -> ModelOperation | None:
    """The first use of the graph that a model's forward recorded."""
    return next((use for use in trace.gradients if model in use.models), None)


def pause_remedy(step: ModelOperation) -> str:
    """The remedy where a test trains."""
    return (
        f"where it is meant to train, put that in `with evalmode.paused():` ({format_operation(step)}); "
        "where it is not, take the step out"
    )


def format_operation(use: ModelOperation) -> str:
    """`SGD.step() at tests/test_net.py:12`."""
    return f"{use.name} at {use.at}" if use.at else use.name


def operation_details(**uses: ModelOperation | None) -> dict[str, str]:
    """Those that there are, for the details."""
    return {name: format_operation(use) for name, use in uses.items() if use is not None}
