"""The parts of a guarded window, each with its trace and its policy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import RULES, Rule, Violation, apply_rules
from pytest_evalmode.rules.exemptions import format_exemption, is_needed
from pytest_evalmode.trace import Leak, Trace, WatchedModel, join_traces


@dataclass(slots=True)
class Segments:
    """The traces of a window in order, one for each part that has its own policy."""

    strict: bool
    custom_rules: tuple[Rule, ...]
    """The rules that user hooks add."""
    _traces: list[tuple[Trace, Policy]] = field(default_factory=list)
    _leaks: list[tuple[Trace, Policy]] = field(default_factory=list)
    """The settings that each part changed.  A later part may restore them, so they count only when the window ends."""

    def __bool__(self) -> bool:
        return bool(self._traces)

    def add(self, trace: Trace, policy: Policy) -> None:
        """Add the trace of a part.  Its models count their forwards from the start of the window."""
        _extend(self._traces, replace(trace, models=tuple(map(self._since_last, trace.models))), policy)

    def add_leaks(self, leaks: tuple[Leak, ...], policy: Policy) -> None:
        _extend(self._leaks, Trace(leaks=leaks), policy)

    def finish_leaks(self, restored: set[tuple[str | None, str]]) -> None:
        """Keep as leaks only the changes that were not restored by the end of the window."""
        for trace, policy in self._leaks:
            leaks = tuple(leak for leak in trace.leaks if (leak.model, leak.name) not in restored)
            self._traces.append((Trace(leaks=leaks), policy))

    def clear(self) -> None:
        """Forget all segments."""
        self._traces.clear()
        self._leaks.clear()

    def append(self, trace: Trace, policy: Policy) -> None:
        """Append a trace as it is, as a part of its own."""
        self._traces.append((trace, policy))

    def full_trace(self) -> Trace:
        """Return all recorded facts, exempted or not."""
        return join_traces([trace for trace, _ in self._traces])

    def violations(self, *, finished: bool) -> list[Violation]:
        """Return the violations; unused exemptions are among them only if the guarded code `finished`."""
        return apply_rules(self._traces, strict=self.strict, user_rules=self.custom_rules, finished=finished)

    def combined_policy(self, policy: Policy) -> Policy:
        """Return a policy combined with those of all parts."""
        return reduce(or_, (policy for _, policy in self._traces), policy)

    def used_exemptions(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Return the given suite-wide exemptions that suppressed a violation in this window."""
        rules = (*RULES, *self.custom_rules)
        return [format_exemption(exemption) for exemption in exemptions if is_needed(exemption, self._traces, rules)]

    def _since_last(self, model: WatchedModel) -> WatchedModel:
        """Return the facts of a model with only the forwards of the latest part."""
        earlier = sum(m.forwards for trace, _ in self._traces for m in trace.models if m.name == model.name)
        return replace(model, forwards=model.forwards - earlier)


def _extend(segments: list[tuple[Trace, Policy]], trace: Trace, policy: Policy) -> None:
    """Append a trace, or join it to the last one if both have the same policy."""
    if segments and segments[-1][1] is policy:
        trace = join_traces([segments.pop()[0], trace])
    segments.append((trace, policy))
