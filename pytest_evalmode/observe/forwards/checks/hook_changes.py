"""Which hooks did the model put on or take away by itself?  Those are no leak of the test's."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.checks.check import Question
from pytest_evalmode.observe.state import flag_snapshots


class OwnHooks(Question):
    """Strict: compares the hooks of a model before and after."""

    def begin(self) -> None:
        self.before = flag_snapshots.hooks_of(self.outermost.parts)

    def end(self, output: object) -> Mapping[str, object]:
        now = modules.tree(self.outermost.ran)
        self.scene.watch.own_hooks |= flag_snapshots.by_itself(self.before, now, self.scene.sites.is_user)
        return {}
