"""What ran in a window, under which policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import RULES, Rule, Violation, apply_rules, join_traces
from pytest_evalmode.rules.exemptions import format_exemption, is_needed
from pytest_evalmode.trace import Leak, Trace, WatchedModel


@dataclass(slots=True)
class Segments:
    """The traces of a window in order; each part that has a policy of its own is one."""

    strict: bool
    custom_rules: tuple[Rule, ...]
    """A team's own."""
    _traces: list[tuple[Trace, Policy]] = field(default_factory=list)
    _leaks: list[tuple[Trace, Policy]] = field(default_factory=list)
    """What each left otherwise: until the window ends, a later one may put it back."""

    def __bool__(self) -> bool:
        return bool(self._traces)

    def add(self, trace: Trace, policy: Policy) -> None:
        """The models of the trace count their forwards from the beginning of the window."""
        _extend(self._traces, replace(trace, models=tuple(map(self._since_last, trace.models))), policy)

    def add_leaks(self, leaks: tuple[Leak, ...], policy: Policy) -> None:
        _extend(self._leaks, Trace(leaks=leaks), policy)

    def finish_leaks(self, restored: set[tuple[str | None, str]]) -> None:
        """The window ends: what has been put back is no leak."""
        for trace, policy in self._leaks:
            left = tuple(leak for leak in trace.leaks if (leak.model, leak.name) not in restored)
            self._traces.append((Trace(leaks=left), policy))

    def append(self, trace: Trace, policy: Policy) -> None:
        """What can only be told once all is over, or is told as it is."""
        self._traces.append((trace, policy))

    def full_trace(self) -> Trace:
        """All that was seen, whatever was declared of it."""
        return join_traces([trace for trace, _ in self._traces])

    def violations(self, *, finished: bool) -> list[Violation]:
        """What they break; of a window that is `finished`, unused exemptions too."""
        return apply_rules(self._traces, strict=self.strict, user_rules=self.custom_rules, finished=finished)

    def combined_policy(self, policy: Policy) -> Policy:
        """A policy, and all that was declared as intended in any part."""
        return reduce(or_, (policy for _, policy in self._traces), policy)

    def used_exemptions(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Which of some exemptions of the whole suite excused something here."""
        rules = (*RULES, *self.custom_rules)
        return [format_exemption(exemption) for exemption in exemptions if is_needed(exemption, self._traces, rules)]

    def _since_last(self, model: WatchedModel) -> WatchedModel:
        """A model with the forwards of the last segment alone."""
        earlier = sum(m.forwards for trace, _ in self._traces for m in trace.models if m.name == model.name)
        return replace(model, forwards=model.forwards - earlier)


def _extend(segments: list[tuple[Trace, Policy]], trace: Trace, policy: Policy) -> None:
    """Add to the last segment or, where another policy holds, begin the next: who asks often gets no more of them."""
    if segments and segments[-1][1] is policy:
        trace = join_traces([segments.pop()[0], trace])
    segments.append((trace, policy))
