"""The line of user code that changed a shared model and did not restore it, if known."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from gc import get_objects
from types import AsyncGeneratorType, FrameType, GeneratorType
from typing import Any

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.model_code import draw_calls
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.trace import Hooks, Leak, Site

_GRAD_CONTEXTS = frozenset({"no_grad", "enable_grad", "set_grad_enabled", "inference_mode"})


def find_leak_line(leak: Leak, model: nn.Module, mode_changes: ModeChanges, user_lines: UserLines) -> Site | None:
    """Return the line that caused a leak of a shared model, or None if it is unknown.

    For a mode that was switched this is the call of `train()` or `eval()`; for a hook that was added, the line at which
    the hook's own code begins.
    """
    path, _, flag = leak.name.rpartition(".")
    part = dict(modules.walk(model)).get(path)
    if part is None:
        return None
    if flag == "training":
        return mode_changes.line_of_mode(part, training=leak.after is True)
    if isinstance(leak.before, Hooks) and isinstance(leak.after, Hooks):
        hooks, added = flag_snapshots.hooks_of([part]), leak.after.keys() - leak.before.keys()
        codes = (flag_snapshots.code_of(hook) for key, hook in hooks.items() if key in added)
        sites = (user_lines.site(code, code.co_firstlineno) for code in codes if code)
        return next((site for site in sites if site), None)
    return None


def find_suspended_context(user_lines: UserLines) -> Site | None:
    """Return the `with torch.no_grad():` around a `yield` at which a generator of user code is suspended, or None.

    Until the generator goes on or is closed, the context is in effect outside of it.  All objects are searched, so this
    is for a grad mode that did change.
    """
    # isinstance() would run code of objects with a `__class__` of their own.
    frames = [_frame_of(each) for each in get_objects() if type(each) in (GeneratorType, AsyncGeneratorType)]
    for frame in frames:
        if frame is not None and user_lines.is_user_code(frame.f_code):
            line = max(_grad_contexts(frame), default=None)
            if line is not None:
                return user_lines.site(frame.f_code, line)
    return None


def _frame_of(generator: Any) -> FrameType | None:
    """Return the frame of a suspended generator; None if it runs, or has ended or not begun."""
    kind = "ag" if isinstance(generator, AsyncGeneratorType) else "gi"
    frame: FrameType | None = getattr(generator, f"{kind}_frame")
    return None if frame is None or frame.f_lasti < 0 or getattr(generator, f"{kind}_running") else frame


def _grad_contexts(frame: FrameType) -> Iterator[int]:
    """Yield the lines of the `with` statements around a frame's line that set grad mode."""
    for node in draw_calls.nodes_of(frame.f_code):
        if isinstance(node, ast.With) and node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
            expressions = [ast.unparse(item.context_expr) for item in node.items]
            if any(name in expression for name in _GRAD_CONTEXTS for expression in expressions):
                yield node.lineno
