"""The HTML report, the panel of a test and the GitHub step summary, made of records built by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pytest_evalmode.report.markdown import render_step_summary
from pytest_evalmode.report.page import render_page, render_panel
from pytest_evalmode.report.page_data import collect_page_data as facts_of
from pytest_evalmode.report.suggest import UnmarkedTest
from pytest_evalmode.report.summary import verdict
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site, Trace
from tests.report.records import test as guarded
from tests.report.records import violation

NASTY = "<script>alert('&')</script>"
PAGE_DATA = {
    "exemption": '@pytest.mark.inference(train=["bn"], reason="...")',
    "trees": {
        "net": {
            "name": "net",
            "type": "Net",
            "modules": 17,
            "marks": [],
            "rows": [
                {"name": "bn", "type": "BatchNorm1d", "modules": 1, "marks": [["training", "since 7"]], "rows": []},
                {"name": "a … b", "type": "", "times": 2, "modules": 2, "marks": [], "rows": []},
                {"name": "c … f", "type": "ReLU", "times": 4, "modules": 4, "marks": [], "rows": []},
                {"name": "g … i", "type": "Block", "times": 3, "modules": 9, "marks": [], "rows": []},
            ],
        }
    },
    "events": [
        ["fixture", "net", "conftest.py:3", 1],
        ["train()", "net", "test_it.py:7", 1],
        ["forward", "net", "test_it.py:9", 40],
    ],
    "lines": {"test_it.py:7": [5, ["five", "six", "net.train()", "eight", "nine"]], "test_it.py:9": [9, ["net(x)"]]},
}
FAULT = violation(
    details={"since": "test_it.py:7"},
    root=["train-mode", "", "test_it.py:7"],
    finding="net.bn (BatchNorm1d) was in training mode",
    since="test_it.py:7",
)


class Text(HTMLParser):
    """A parser for the text of a page, its tags, and the links that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page.replace("<wbr>", ""))  # which allows a line break

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def page_of(*tests: dict[str, Any]) -> str:
    return render_page(list(tests), mode="enforce", strict=False)


def text_of(page: str) -> str:
    return " ".join(Text(page).words)


def test_the_verdict_counts_tests_that_are_not_clean() -> None:
    clean, dirty = guarded("test_a"), guarded("test_b", violation())
    known = {"test_it.py::test_b": frozenset({("train-mode", "net")})}
    assert verdict([clean, clean]) == "2 guarded tests, all clean"
    assert verdict([clean, dirty]) == "1 of 2 tests was not clean"
    assert verdict([dirty, guarded("test_c", violation())]) == "2 of 2 tests were not clean"
    assert verdict([clean, dirty], known) == "2 guarded tests, nothing new; 1 known violation"
    assert verdict([guarded("test_c", violation()), dirty], known) == "1 of 2 tests was not clean; 1 known violation"
    assert verdict([]) == "no test was guarded"


def test_a_run_that_may_hide_violations_is_not_called_clean() -> None:
    assert verdict([guarded("test_a", dropped=2)]) == "1 guarded test, no violations; 2 violations dropped by a hook"
    failed_guard = verdict([guarded("test_a", unjudged=True)])
    assert failed_guard == "1 guarded test, no violations; the guard failed in 1 test: result unknown"


def test_a_failed_test_is_shown_completely() -> None:
    visible = text_of(page_of(guarded("test_a", FAULT, shown=PAGE_DATA), guarded("test_b")))
    assert "1 of 2 tests was not clean" in visible
    for part in (
        "test_it.py:7 train-mode",
        "net.bn (BatchNorm1d) was in training mode",
        "7 net.train()",
        "8 eight",
        'intended? @pytest.mark.inference(train=["bn"], reason="...")',
        "fixture net provided the model conftest.py:3",
        "net.train() test_it.py:7",
        "net ran 40 times test_it.py:9",
        "end: failed",
        "bn BatchNorm1d training since 7",
        "a … b 2 modules clean c … f ReLU × 4 clean g … i Block × 3, 9 modules clean",
    ):
        assert part in visible, part


def test_the_root_causes_come_before_the_tests() -> None:
    visible = text_of(
        page_of(*(guarded(f"test_{i}", FAULT, shown=PAGE_DATA) for i in range(15)), guarded("test_clean"))
    )
    assert visible.index("Fix first") < visible.index("explains 15 tests") < visible.index("Tests with violations")


def test_code_in_a_fix_is_shown_as_code() -> None:
    found = violation(remedy="use `with evalmode.paused():` or <b>eval()</b>")
    assert (
        page_of(guarded("test_a", found)).count("use <code>with evalmode.paused():</code> or &lt;b&gt;eval()&lt;/b&gt;")
        == 2
    )


def test_a_fixture_is_shown_with_its_first_lines(tmp_path: Path) -> None:
    body = [
        "@pytest.fixture",
        "def net():",
        '    """Ours."""',
        "    seed()",
        "",
        "    return Net()",
        "",
        "@pytest.fixture",
    ]
    (tmp_path / "conftest.py").write_text("\n".join(["import pytest", *body, "def other():", "    pass"]))
    site = Site("conftest.py", 2, "@pytest.fixture")
    broken = Violation(rule="train-mode", model="net", subjects=("net (Net)",), message="net ran", finding="net ran")
    facts = facts_of(Trace(), [broken], {"net": site}, "inference", tmp_path)
    root = ["train-mode", "fixture net", str(site)]
    visible = text_of(page_of(guarded("test_a", violation(root=root), shown=facts)))
    assert "model from fixture net conftest.py:2" in visible
    assert "7 return Net() call net.eval()" in visible


def test_the_grid_shows_which_test_broke_which_rule() -> None:
    html = page_of(guarded("test_a[9]", violation()), guarded("test_a[10]", violation(), violation("grad-mode")))
    rows = re.findall(r'data-rules="([^"]*)">\n<summary>(.*?)</summary>', html)
    assert [(rules, re.findall(r'column: (\d+)" title="([^"]+)"', row)) for rules, row in rows] == [
        ("train-mode", [("2", "train-mode")]),
        ("train-mode grad-mode", [("2", "train-mode"), ("3", "grad-mode")]),
    ]
    assert html.index("test_a[9]</span>") < html.index("test_a[10]</span>")


def test_a_consequence_of_training_mode_is_shown_below_it() -> None:
    changed = violation("state-mutated", remedy="call model.eval()", root=["train-mode", "", "test_it.py:9"])
    visible = text_of(page_of(guarded("test_a", violation(), changed)))
    assert "as a result, state-mutated state-mutated, the headline" in visible
    assert "call model.eval()" not in visible


def test_the_command_that_explains_a_rule_names_a_built_in_rule() -> None:
    assert "pytest --evalmode-rules train-mode" in text_of(page_of(guarded("test_a", violation("own"), violation())))
    assert "--evalmode-rules" not in page_of(guarded("test_a", violation("own")))


def test_exemptions_are_listed_with_their_reasons() -> None:
    excused = [guarded(name, exemptions=['train="drop"'], reason="MC dropout") for name in ("test_a", "test_b")]
    visible = text_of(page_of(*excused, guarded("test_c", exemptions=['allow="grad-mode"'])))
    assert 'train="drop" : MC dropout 2 tests' in visible
    assert 'allow="grad-mode" : no reason given 1 test' in visible


def test_known_violations_are_shown_separately() -> None:
    tests = [guarded("test_a", violation(), violation("grad-mode")), guarded("test_b", violation())]
    listed = {f"test_it.py::{name}": frozenset({("train-mode", "net")}) for name in ("test_a", "test_b")}
    html = render_page(tests, mode="enforce", strict=False, known=listed)
    new, _, known = html.partition('<h2 id="known">')
    assert "1 of 2 tests was not clean; 2 known violations" in text_of(new)
    assert "grad-mode, the headline" in text_of(new)
    assert "train-mode, the headline" not in text_of(new)
    assert "2 listed in the baseline or expected by an xfail mark, in 2 tests" in text_of(known)
    assert "explains 2 tests" in text_of(known)
    assert "grad-mode, the headline" not in text_of(known)
    assert "Known violations" not in text_of(page_of(*tests))
    assert "train-mode" not in render_step_summary(tests, listed)


def test_an_expected_failure_is_a_known_violation() -> None:
    expected = guarded("test_a", violation(), outcome="xfailed")
    assert verdict([expected]) == "1 guarded test, nothing new; 1 known violation"
    assert "Fix first" in text_of(page_of(expected, guarded("test_b", violation())))
    assert render_step_summary([expected]).count("explains") == 0


def test_unmarked_tests_that_ran_models_are_listed_with_advice() -> None:
    unmarked = [
        UnmarkedTest("test_it.py::test_a", ["net (Net)"], ["grad-mode"]),
        UnmarkedTest("test_it.py::test_b", ["Net"], []),
    ]
    advice = ["to guard them, add to the configuration:", "  evalmode_mark ="]
    html = render_page([], mode="enforce", strict=False, unmarked=unmarked, advice=advice)
    visible = text_of(html)
    assert "Unmarked tests that ran models test_it.py::test_a grad-mode net (Net)" in visible
    assert "test_it.py::test_b clean Net" in visible
    assert "\n".join(advice) in html


def test_tests_that_were_not_watched_are_counted_with_a_hint_to_evalmode_suggest() -> None:
    tests = [guarded("test_a")]
    html = render_page(tests, mode="enforce", strict=False, unguarded=3)
    assert "3 unmarked tests passed: pytest --evalmode-suggest shows which of them run a model." in text_of(html)
    assert "--evalmode-suggest" not in page_of(*tests)


def test_names_are_escaped() -> None:
    texts = dict.fromkeys(("model", "message", "remedy", "finding"), NASTY)
    nasty = violation(NASTY, subjects=[NASTY, NASTY], cause=f"{NASTY}:3", since=f"{NASTY}:1", **texts)
    row = {"name": NASTY, "type": NASTY, "modules": 1, "marks": [[NASTY, NASTY]], "rows": []}
    facts = {
        "exemption": NASTY,
        "trees": {"net": row},
        "events": [["forward", NASTY, f"{NASTY}:1", 1]],
        "lines": {f"{NASTY}:3": [3, [NASTY]]},
    }
    tests = [guarded(NASTY, nasty, shown=facts, reason=NASTY), guarded(NASTY + "2", exemptions=[NASTY], reason=NASTY)]
    for html in (page_of(*tests), render_panel(tests[0])):
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert" in html
    assert Text(page_of(*tests)).tags.count("script") == 1  # the page's own


def test_the_page_fetches_nothing() -> None:
    html = Text(page_of(guarded("test_a", FAULT, shown=PAGE_DATA), guarded("test_b", violation())))
    assert all(link.startswith("#") for link in html.links)
    assert not {"link", "img", "iframe"} & set(html.tags)


def test_every_link_has_a_target() -> None:
    html = page_of(*(guarded(f"test_{i}", FAULT, shown=PAGE_DATA) for i in range(30)), guarded("test_clean"))
    assert {link[1:] for link in Text(html).links} == set(re.findall(r'id="(\w+)"', html))


def test_the_page_of_a_thousand_failed_tests_has_a_limited_size() -> None:
    html = page_of(*(guarded(f"test_{i}", FAULT, shown=PAGE_DATA) for i in range(1000)))
    assert len(html) < 4_000_000


def test_a_clean_run_has_nothing_to_fix() -> None:
    visible = text_of(page_of(guarded("test_a"), guarded("test_b")))
    assert "2 guarded tests, all clean" in visible
    assert "Fix first" not in visible
    assert "Tests with violations" not in visible


def test_the_panel_shows_only_its_test() -> None:
    visible = text_of(render_panel(guarded("test_a", FAULT, shown=PAGE_DATA)))
    assert "net.bn (BatchNorm1d) was in training mode" in visible
    assert "Fix first" not in visible


def test_the_step_summary_is_a_short_form_of_the_page() -> None:
    tests = [guarded(f"test_{i}", FAULT, shown=PAGE_DATA) for i in range(15)]
    tests += [guarded("test_clean", exemptions=['train="drop"'], reason="MC dropout")]
    visible = render_step_summary(tests)
    assert visible.startswith("### evalmode: 15 of 16 tests were not clean\n")
    assert "1. **`test_it.py:7`** (train-mode): train-mode, the headline" in visible
    assert "explains 15 tests" in visible
    assert "- `test_it.py::test_3`" in visible
    assert '- `train="drop"`: MC dropout (1 test)' in visible


def test_the_step_summary_escapes_names() -> None:
    tests = [guarded("test_a`b|c", violation(message=NASTY, remedy="use *this*_one_ [or](that)"))]
    visible = render_step_summary(tests)
    assert "<script>" not in visible
    assert r"use \*this\*\_one\_ \[or\](that)" in visible
    assert "`` test_it.py::test_a`b|c ``" in visible


def test_the_step_summary_has_a_limited_size() -> None:
    tests = [guarded(f"test_{i}", violation("grad-mode", at=f"test_it.py:{i // 50}")) for i in range(5000)]
    assert len(render_step_summary(tests)) < 100_000
