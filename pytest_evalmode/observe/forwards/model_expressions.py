"""The Python expression for a model at the user's line that called it, for fixes such as `net.encoder[2].eval()`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType

from torch import nn

from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.models.tracked_model import TrackedModel
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import Caller

_MAX_VARIABLES = 200
_EXPRESSION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*|\[[^][]+\])*")
"""A name that a user can write in code: `bundle.models["a"]`, but not `my model`."""


def find_expression(owner: nn.Module, model: TrackedModel, code: str, caller: Caller) -> str:
    """Return an expression for the module that ran, or an empty string; `code` is its path in the model."""
    if (model.parent or model).is_named and _EXPRESSION.fullmatch(model.name):
        return model.name + code
    root = (model.parent or model).module()
    for frame in (caller.test_frame, caller.frame):
        if isinstance(frame, FrameType):
            for name, found in _variables(frame):
                if found is owner:
                    return name
                if found is root:
                    return name + code
    return ""


def _variables(frame: FrameType) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a frame's variables hold, themselves or in containers."""
    variables = {**frame.f_globals, **callers.locals_of(frame)}
    code = frame.f_code
    names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars, *code.co_names)
    values = [(name, variables[name]) for name in names if name in variables][:_MAX_VARIABLES]
    yield from ((name, value) for name, value in values if isinstance(value, nn.Module))
    for name, value in values:
        if not isinstance(value, nn.Module):
            yield from discovery.find_models(value, name)
