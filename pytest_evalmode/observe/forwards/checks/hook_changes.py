"""Which hooks did the model put on or take away by itself?  Those are no leak of the test's."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import ForwardCheck
from pytest_evalmode.observe.state import flag_snapshots


class HookChangeCheck(ForwardCheck):
    """Strict: compares the hooks of a model before and after."""

    def begin(self) -> None:
        self.before = flag_snapshots.hooks_of(self.forward.parts)

    def end(self, output: object) -> Mapping[str, object]:
        now = modules.all_modules(self.forward.root)
        self.context.watch.own_hooks |= flag_snapshots.hooks_changed_by_model(
            self.before, now, self.context.sites.is_user_code
        )
        return {}
