"""The parts of a guarded window, each with its trace and its policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import RULES, Rule, Violation, apply_rules
from pytest_evalmode.rules.exemptions import format_exemption, is_needed
from pytest_evalmode.trace import Leak, Trace, join_traces


@dataclass(slots=True)
class Segments:
    """The traces of a window in order, one for each part that has its own policy."""

    strict: bool
    custom_rules: tuple[Rule, ...]
    """The rules that user hooks add."""
    restored_settings: set[tuple[str | None, str]] | None = None
    """Model and name of the settings that a later part restored; None until the window ends, when the others leaked."""
    _parts: list[tuple[Trace, Policy]] = field(default_factory=list)

    def add(self, trace: Trace, policy: Policy) -> None:
        """Add the trace of a part, or join it to the last one if both have the same policy.

        The models of the trace count their forwards from the start of the window.
        """
        earlier = Counter({m.name: m.forwards for m in self.full_trace().models})
        models = (replace(model, forwards=model.forwards - earlier[model.name]) for model in trace.models)
        trace = replace(trace, models=tuple(models))
        if self._parts and self._parts[-1][1] is policy:
            trace = join_traces([self._parts.pop()[0], trace])
        self._parts.append((trace, policy))

    def clear(self) -> None:
        """Forget all segments."""
        self._parts.clear()

    def full_trace(self) -> Trace:
        """Return all recorded facts, exempted or not."""
        return join_traces([trace for trace, _ in self._parts])

    def violations(self, *, finished: bool) -> list[Violation]:
        """Return the violations; unused exemptions are among them only if the guarded code `finished`."""
        return apply_rules(self._judged(), strict=self.strict, user_rules=self.custom_rules, finished=finished)

    def combined_policy(self, policy: Policy) -> Policy:
        """Return a policy combined with those of all parts."""
        return reduce(or_, (policy for _, policy in self._parts), policy)

    def used_exemptions(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Return the given suite-wide exemptions that suppressed a violation in this window."""
        rules, parts = (*RULES, *self.custom_rules), self._judged()
        return [format_exemption(exemption) for exemption in exemptions if is_needed(exemption, parts, rules)]

    def _judged(self) -> list[tuple[Trace, Policy]]:
        """Return the parts with the leaks that count."""
        return [(replace(trace, leaks=tuple(filter(self._is_leak, trace.leaks))), p) for trace, p in self._parts]

    def _is_leak(self, leak: Leak) -> bool:
        return self.restored_settings is not None and (leak.model, leak.name) not in self.restored_settings
