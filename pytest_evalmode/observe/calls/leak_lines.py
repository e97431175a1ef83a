"""The line of user code that changed a shared model and did not restore it, if known."""

from __future__ import annotations

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.trace import Hooks, Leak, Site


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
