"""The HTML report, the panels of pytest-html and the step summary, from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import suites

SUITE = """
@pytest.fixture(scope="module")
def net():
    return Net().eval()

@pytest.mark.inference
def test_fault(net):
    net.train()
    infer(net)

@pytest.mark.inference(train=["drop"], reason="MC dropout")
def test_drop(net):
    net.eval()
    net.drop.train()
    infer(net)

@pytest.mark.inference
def test_clean(net):
    infer(net.eval())
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    suites.write(pytester, SUITE)
    return pytester


def page(suite: pytest.Pytester, *args: str) -> str:
    suites.run(suite, "--evalmode-html=out/page.html", *args)
    made = (suite.path / "out" / "page.html").read_text(encoding="utf-8")
    return made.replace("<wbr>", "")  # allowed line breaks in long names


@suites.WORKERS
def test_the_page_shows_events_lines_and_exemptions(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    made = page(suite, *workers)
    for part in (
        "1 of 3 tests was not clean",
        "test_it.py::test_fault",
        "fixture <code>net</code> provided the model",
        "<code>net.train()</code>",
        "    net.train()</mark>",
        "since</span> <code>test_it.py:9</code>",
        "train=&#34;drop&#34;",
        "MC dropout",
    ):
        assert part in made, part


def test_the_json_report_is_the_same_with_and_without_a_page(suite: pytest.Pytester) -> None:
    def timeless(report: object) -> str:
        return json.dumps(report, default=str).replace(" ", "").partition('"totals"')[0]

    without_page = suites.json_report(suite)
    with_page = suites.json_report(suite, "--evalmode-html=page.html")
    assert timeless(without_page) == timeless(with_page)
    keys = {key for test in with_page["tests"] for key in test}
    assert keys == {"nodeid", "outcome", "reason", "forwards", "seconds", "models", "violations"}


def test_page_data_is_recorded_only_if_needed(suite: pytest.Pytester) -> None:
    for args, is_shown in (([], False), (["--evalmode-html=page.html"], True)):
        reports = suite.inline_run(*suites.PLAIN, *args).getreports("pytest_runtest_logreport")
        records = [json.loads(str(dict(r.user_properties)["evalmode"])) for r in reports if r.when == "call"]
        assert [bool(record["shown"]) for record in records] == [is_shown, is_shown, False]


def test_without_jinja_the_error_says_what_to_install(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = suites.run(suite, "--evalmode-html=page.html", "-p", "no:html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--evalmode-html requires Jinja2; run: pip install 'pytest-evalmode[[]html]'"])
    assert suites.run(suite, "-k", "clean", "-p", "no:html").ret == pytest.ExitCode.OK


@pytest.mark.parametrize("given", ["", "."])
def test_a_path_that_is_not_a_file_is_a_usage_error(suite: pytest.Pytester, given: str) -> None:
    result = suites.run(suite, f"--evalmode-html={given}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--evalmode-html: cannot write to '{given}'"])


def test_a_page_that_cannot_be_written_hides_no_results(suite: pytest.Pytester) -> None:
    (suite.path / "conftest.py").write_text(
        "def pytest_runtest_teardown(item):\n    (item.config.rootpath / 'page.html').mkdir()\n", encoding="utf-8"
    )
    result = suites.run(suite, "--evalmode-html=page.html", "-k", "clean")
    result.assert_outcomes(passed=1, deselected=2)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--evalmode-html: *page.html could not be written: Is a directory"])


def test_rows_of_pytest_html_contain_panels(suite: pytest.Pytester) -> None:
    pytest.importorskip("pytest_html")
    suites.run(suite, "-pmetadata", "-phtml", "-phtml_fixtures", "--html=rows.html", "--self-contained-html")
    rows = (suite.path / "rows.html").read_text(encoding="utf-8")
    assert rows.count("net (Net) ran once in training mode") >= 1
    assert "provided the model" in rows


def test_the_plugin_works_without_pytest_html(suite: pytest.Pytester) -> None:
    result = suites.run(suite, "-p", "no:html", "-k", "clean")
    assert result.ret == pytest.ExitCode.OK


def test_a_step_summary_is_written_under_github_actions(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("from an earlier step\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    suites.run(suite)
    assert summary.read_text(encoding="utf-8") == "from an earlier step\n"  # not GitHub
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    suites.run(suite)
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("from an earlier step\n### evalmode: 1 of 3 tests was not clean")
    assert "**`test_it.py:9`**" in text


def test_a_step_summary_that_cannot_be_written_does_not_fail_the_run(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    result = suites.run(suite, "-k", "clean")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["GITHUB_STEP_SUMMARY: * could not be written: Is a directory"])


def test_a_garbage_collected_model_still_has_a_tree(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n")
    made = page(pytester)
    assert '<ul class="tree">' in made
    assert "Dropout" in made
