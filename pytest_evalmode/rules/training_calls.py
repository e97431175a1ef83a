"""What a test does on purpose: it trains a model, or uses the gradients of one."""

from __future__ import annotations

from pytest_evalmode.trace import Trace, Use


def trained(trace: Trace, model: str | None) -> Use | None:
    """The first step of an optimizer that holds parameters of a model."""
    return next((step for step in trace.steps if model in step.models), None)


def used(trace: Trace, model: str | None) -> Use | None:
    """The first use of the graph that a model's forward recorded."""
    return next((use for use in trace.gradients if model in use.models), None)


def pause(step: Use) -> str:
    """The remedy where a test trains."""
    return (
        f"where it is meant to train, put that in `with evalmode.paused():` ({told(step)}); "
        "where it is not, take the step out"
    )


def told(use: Use) -> str:
    """`SGD.step() at tests/test_net.py:12`."""
    return f"{use.by} at {use.at}" if use.at else use.by


def details(**uses: Use | None) -> dict[str, str]:
    """Those that there are, for the details."""
    return {name: told(use) for name, use in uses.items() if use is not None}
