"""Which unmarked tests ran inference, and how to have them guarded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pytest_evalmode.report.summary import Line
from pytest_evalmode.rules import Violation
from pytest_evalmode.rules.wording import first_and_more, plural
from pytest_evalmode.trace import Trace

Suggestion = Mapping[str, Any]


def serialize_suggestion(trace: Trace, violations: Iterable[Violation]) -> str | None:
    """What an unmarked test ran, as it travels in its report; None if it ran no model.

    A model is inferred from where a forward ran in eval mode or recorded no autograd, unless an optimizer stepped it.
    """
    stepped = {name for step in trace.steps for name in step.models}
    ran = [model for model in trace.models if model.forwards]
    if not ran:
        return None
    training = {model.name: 0 for model in ran}
    for call in trace.calls:
        if call.training and call.autograd and call.ran.model in training:
            training[call.ran.model] += call.count
    inferred = [m for m in ran if m.forwards > training[m.name] and m.name not in stepped]
    names = {model.name for model in inferred}
    return json.dumps(
        {
            "models": [
                model.name if model.name == model.type else f"{model.name} ({model.type})" for model in inferred
            ],
            "trains": len(inferred) < len(ran),
            "violations": [v.rule for v in violations if v.model is None or v.model in names],
        }
    )


def serialize_failure(failure: Exception) -> str:
    """The same of a test in which the guard itself failed: it may have run anything."""
    return json.dumps({"models": [], "trains": False, "violations": [], "failure": repr(failure)})


def suggestion_lines(tests: Mapping[str, Suggestion], marker: str, *, toml: bool) -> Iterator[Line]:
    """The tests that should be guarded, worst first, and what to write to have them guarded.

    `tests` are all unmarked ones that ran a model, by node id; `toml` is how the project is configured.
    """
    lost = failed_guards(tests)
    if lost:
        told = f"the guard failed in {plural(len(lost), 'unmarked test')}: what was run there is not known"
        yield Line(told, "yellow")
        yield from (Line(f"  {nodeid}  {failure}", "yellow") for nodeid, failure in lost)
    found = unmarked_tests(tests)
    if not found:
        if not lost:
            yield Line("no unmarked test ran inference")
        return
    dirty = sum(bool(test.rules) for test in found)
    yield Line(f"{plural(len(found), 'unmarked test')} ran inference; guarded, {dirty} would fail today:")
    for (name, rules, models), cases in groupby(found, _alike):
        nodeid, *others = [case.nodeid for case in cases]
        named = f"{name} ({len(others) + 1} cases)" if others else nodeid
        told = f"  {named}  {', '.join(rules) or 'clean'}  {first_and_more(models)}"
        yield Line(told, "yellow" if rules else "green")
    yield from map(Line, marking_advice(tests, marker, toml=toml))


class UnmarkedTest(NamedTuple):
    """A test that should be guarded: the models that it ran, and the rules that it would break."""

    nodeid: str
    models: Sequence[str]
    rules: Sequence[str]


def _alike(test: UnmarkedTest) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """What cases of one parametrised test have in common, so that they need but one line."""
    return test.nodeid.partition("[")[0], tuple(test.rules), tuple(test.models)


def unmarked_tests(tests: Mapping[str, Suggestion]) -> list[UnmarkedTest]:
    """The tests that should be guarded, worst first."""
    found = {nodeid: test for nodeid, test in tests.items() if test["models"]}
    ordered = sorted(found.items(), key=lambda each: (-len(each[1]["violations"]), each[0]))
    return [UnmarkedTest(nodeid, test["models"], list(dict.fromkeys(test["violations"]))) for nodeid, test in ordered]


def failed_guards(tests: Mapping[str, Suggestion]) -> list[tuple[str, str]]:
    """The tests in which the guard itself failed, each with how."""
    return sorted((nodeid, test["failure"]) for nodeid, test in tests.items() if test.get("failure"))


def marking_advice(tests: Mapping[str, Suggestion], marker: str, *, toml: bool) -> Iterator[str]:
    """What to write to have them guarded."""
    found = [test.nodeid for test in unmarked_tests(tests)]
    files = {_file(nodeid) for nodeid in found}
    training = {_file(nodeid) for nodeid, test in tests.items() if test["trains"]}
    whole = sorted(_folders(files - training, training))
    if whole:
        yield "to guard them, add to the configuration:"
        yield from (f"  {text}" for text in _ini(whole, toml=toml))
    alone = dict.fromkeys(nodeid.partition("[")[0] for nodeid in sorted(found) if _file(nodeid) in training)
    if alone:
        yield f"{'and, ' if whole else ''}as other tests of the file train, put @pytest.mark.{marker} on:"
        yield from (f"  {nodeid}" for nodeid in alone)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _folders(files: Iterable[str], others: Iterable[str]) -> set[str]:
    """The files, those of a folder by its name where it holds several, and none of the others."""
    taken = {str(folder) for other in others for folder in PurePosixPath(other).parents}
    names = set(files)
    folders = {str(folder) for file in names for folder in PurePosixPath(file).parents} - taken - {"."}
    for folder in sorted(folders, key=lambda name: (name.count("/"), name)):
        inside = {name for name in names if name.startswith(f"{folder}/")}
        if len(inside) > 1:
            names = names - inside | {folder}
    return names


def _ini(names: Collection[str], *, toml: bool) -> Iterator[str]:
    if toml:
        yield "evalmode_mark = ["
        yield from (f'    "{name}",' for name in names)
        yield "]"
    else:
        yield "evalmode_mark ="
        yield from (f"    {name}" for name in names)
