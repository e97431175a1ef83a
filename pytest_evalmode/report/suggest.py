"""The suggestions of `--evalmode-suggest`: unmarked tests that ran inference, and how to guard them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pytest_evalmode.report.summary import Line
from pytest_evalmode.rules import Violation
from pytest_evalmode.rules.wording import first_and_more, plural
from pytest_evalmode.trace import Trace

Suggestion = Mapping[str, Any]
"""What an unmarked test ran, as `describe_inference()` returns it, or the `failure` of its guard."""


def describe_inference(trace: Trace, violations: Iterable[Violation]) -> Suggestion | None:
    """Return the models that an unmarked test ran and the rules that it would break, or None if it ran none.

    A model counts if at least one of its forwards ran in eval mode or without autograd, and no optimizer updated it.
    """
    trained = {name for step in trace.steps for name in step.models}
    ran = [model for model in trace.models if model.forwards]
    if not ran:
        return None
    training = {model.name: 0 for model in ran}
    for call in trace.calls:
        if call.training and call.autograd and call.ran.model in training:
            training[call.ran.model] += call.count
    inference = [m for m in ran if m.forwards > training[m.name] and m.name not in trained]
    names = {model.name for model in inference}
    return {
        "models": [model.name if model.name == model.type else f"{model.name} ({model.type})" for model in inference],
        "trains": len(inference) < len(ran),
        "violations": [v.rule for v in violations if v.model is None or v.model in names],
    }


def suggestion_lines(tests: Mapping[str, Suggestion], marker: str, *, toml: bool) -> Iterator[Line]:
    """Yield the tests that should be guarded, the worst first, and how to guard them in the configuration."""
    failures = failed_guards(tests)
    if failures:
        yield Line(f"the guard failed in {plural(len(failures), 'unmarked test')}: result unknown", "yellow")
        yield from (Line(f"  {nodeid}  {failure}", "yellow") for nodeid, failure in failures)
    unmarked = unmarked_tests(tests)
    if not unmarked:
        if not failures:
            yield Line("no unmarked test ran inference")
        return
    failing = sum(bool(test.rules) for test in unmarked)
    yield Line(f"{plural(len(unmarked), 'unmarked test')} ran inference; {failing} would fail if guarded:")
    # Cases of a parametrized test with the same result share a line.
    for (function, rules, models), cases in groupby(
        unmarked, lambda t: (t.nodeid.partition("[")[0], t.rules, t.models)
    ):
        nodeid, *others = [case.nodeid for case in cases]
        name = f"{function} ({len(others) + 1} cases)" if others else nodeid
        text = f"  {name}  {', '.join(rules) or 'clean'}  {first_and_more(models)}"
        yield Line(text, "yellow" if rules else "green")
    yield from map(Line, marking_advice(tests, marker, toml=toml))


class UnmarkedTest(NamedTuple):
    """A test that should be guarded, with the models that it ran and the rules that it would break."""

    nodeid: str
    models: Sequence[str]
    rules: Sequence[str]


def unmarked_tests(tests: Mapping[str, Suggestion]) -> list[UnmarkedTest]:
    """Return the tests that should be guarded, the worst first."""
    inference = {nodeid: test for nodeid, test in tests.items() if test.get("models")}
    ordered = sorted(inference.items(), key=lambda each: (-len(each[1]["violations"]), each[0]))
    return [UnmarkedTest(nodeid, test["models"], list(dict.fromkeys(test["violations"]))) for nodeid, test in ordered]


def failed_guards(tests: Mapping[str, Suggestion]) -> list[tuple[str, str]]:
    """Return the tests in which the guard itself failed, each with its error."""
    return sorted((nodeid, test["failure"]) for nodeid, test in tests.items() if test.get("failure"))


def marking_advice(tests: Mapping[str, Suggestion], marker: str, *, toml: bool) -> Iterator[str]:
    """Yield lines that say how to guard the tests: in the configuration, or one by one beside tests that train."""
    nodeids = [test.nodeid for test in unmarked_tests(tests)]
    files = {_file(nodeid) for nodeid in nodeids}
    training_files = {_file(nodeid) for nodeid, test in tests.items() if test.get("trains")}
    paths = sorted(_paths(files - training_files, training_files))
    if paths:
        yield "to guard them, add to the configuration:"
        yield from (f"  {text}" for text in _ini(paths, toml=toml))
    single = dict.fromkeys(nodeid.partition("[")[0] for nodeid in sorted(nodeids) if _file(nodeid) in training_files)
    if single:
        yield f"{'and ' if paths else ''}add @pytest.mark.{marker} to these tests (other tests in their files train):"
        yield from (f"  {nodeid}" for nodeid in single)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _paths(files: Iterable[str], excluded: Iterable[str]) -> set[str]:
    """Return the files, with a folder in place of its files if it holds several of them and no excluded file."""
    excluded_folders = {str(folder) for file in excluded for folder in PurePosixPath(file).parents}
    names = set(files)
    folders = {str(folder) for file in names for folder in PurePosixPath(file).parents} - excluded_folders - {"."}
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
