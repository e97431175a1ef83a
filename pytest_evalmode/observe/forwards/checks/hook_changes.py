"""Record of the hooks that a model adds or removes by itself, which are not a leak of the test."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.state import flag_snapshots


class HookChangeCheck(ForwardCheck):
    """Strict check that compares the hooks of a model before and after a forward."""

    def begin(self) -> None:
        self.before = flag_snapshots.hooks_of(self.forward.parts)

    def end(self, output: object) -> Mapping[str, object]:
        now, is_user_code = modules.all_modules(self.forward.root), self.window.user_lines.is_user_code
        self.window.watch.own_hooks |= flag_snapshots.hooks_changed_by_model(self.before, now, is_user_code)
        return {}
