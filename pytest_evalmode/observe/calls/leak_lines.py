"""A shared model that is set otherwise than it was -> the user's line that set it, where that is known."""

from __future__ import annotations

import re

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.trace import Leak, Site

_NUMBER = re.compile(r" #(\d+)")


def find_leak_line(leak: Leak, model: nn.Module, mode_changes: ModeChanges, user_lines: UserLines) -> Site | None:
    """The line that switched a mode; of a hook that was added, the line where its code begins."""
    path, _, flag = leak.name.rpartition(".")
    part = dict(modules.walk(model)).get(path)
    if part is None:
        return None
    if flag == "training":
        return mode_changes.line_of_mode(part, training=leak.after == "True")
    if flag.endswith("hooks"):
        added = {int(number) for number in _NUMBER.findall(leak.after)}.difference(
            int(number) for number in _NUMBER.findall(leak.before)
        )
        codes = (flag_snapshots.code_of(hook) for key, hook in flag_snapshots.hooks_of([part]).items() if key in added)
        return next((site for code in codes if code and (site := user_lines.site(code, code.co_firstlineno))), None)
    return None
