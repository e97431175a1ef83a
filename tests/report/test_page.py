"""The page, a test's panel and the step summary, made of plain records."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pytest_evalmode.report.markdown import render_step_summary
from pytest_evalmode.report.page import render_page, render_panel, verdict
from pytest_evalmode.report.page_data import collect_page_data as facts_of
from pytest_evalmode.report.suggest import UnmarkedTest
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site, Trace
from tests.report.records import test as guarded
from tests.report.records import totals, violation

NASTY = "<script>alert('&')</script>"
SHOWN = {
    "findings": ["net.bn (BatchNorm1d) was in training mode"],
    "since": ["test_it.py:7"],
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
    "fixtures": {"net": "conftest.py:3"},
    "lines": {"test_it.py:7": [5, ["five", "six", "net.train()", "eight", "nine"]], "test_it.py:9": [9, ["net(x)"]]},
}
FAULT = violation(details={"since": "test_it.py:7"}, root=["train-mode", "", "test_it.py:7"])


class Text(HTMLParser):
    """The text of a page, and the attributes by which a browser would fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page.replace("<wbr>", ""))  # where a name may break

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def shown(*tests: dict[str, Any]) -> str:
    return render_page(list(tests), totals=totals(list(tests)), mode="enforce", strict=False)


def text(page: str) -> str:
    return " ".join(Text(page).words)


def test_the_verdict() -> None:
    clean, dirty = guarded("test_a"), guarded("test_b", violation())
    known = {"test_it.py::test_b": frozenset({("train-mode", "net")})}
    assert verdict([clean, clean]) == "2 guarded tests, all clean"
    assert verdict([clean, dirty]) == "1 of 2 tests was not clean"
    assert verdict([dirty, guarded("test_c", violation())]) == "2 of 2 tests were not clean"
    assert verdict([clean, dirty], known) == "2 guarded tests, nothing new; 1 known violation"
    assert verdict([guarded("test_c", violation()), dirty], known) == "1 of 2 tests was not clean; 1 known violation"
    assert verdict([]) == "no test was guarded"


def test_a_run_that_may_hide_something_is_not_said_to_be_clean() -> None:
    assert verdict([guarded("test_a", dropped=2)]) == "1 guarded test, no violation; 2 violations dropped by a hook"
    unjudged = verdict([guarded("test_a", unjudged=True)])
    assert unjudged == "1 guarded test, no violation; the guard failed in 1 test: whether clean is not known"


def test_a_failed_test_is_told_whole() -> None:
    told = text(shown(guarded("test_a", FAULT, shown=SHOWN), guarded("test_b")))
    assert "1 of 2 tests was not clean" in told
    for part in (
        "test_it.py:7 train-mode",
        "net.bn (BatchNorm1d) was in training mode",
        "7 net.train()",
        "8 eight",
        'intended? @pytest.mark.inference(train=["bn"], reason="...")',
        "fixture net handed its model over conftest.py:3",
        "net.train() test_it.py:7",
        "net ran 40 times test_it.py:9",
        "end: failed",
        "bn BatchNorm1d training since 7",
        "a … b 2 modules clean c … f ReLU × 4 clean g … i Block × 3, 9 modules clean",
    ):
        assert part in told, part


def test_the_first_to_mend_comes_before_the_tests() -> None:
    told = text(shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(15)), guarded("test_clean")))
    assert told.index("Mend first") < told.index("explains 15 tests") < told.index("The tests")


def test_a_fixture_is_shown_as_far_as_there_is_room(tmp_path: Path) -> None:
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
    facts = facts_of(Trace(), [broken], fixtures={"net": site}, marker="inference", root=tmp_path)
    root = ["train-mode", "fixture net", str(site)]
    told = text(shown(guarded("test_a", violation(root=root), shown=facts)))
    assert "the model of fixture net conftest.py:2" in told
    assert "7 return Net() call net.eval()" in told


def test_the_grid_tells_which_test_broke_which_rule() -> None:
    made = shown(guarded("test_a[10]", violation(), violation("grad-mode")), guarded("test_a[9]", violation()))
    rows = re.findall(r'data-rules="([^"]*)">\n<summary>(.*?)</summary>', made)
    assert [(rules, re.findall(r'column: (\d+)" title="([^"]+)"', row)) for rules, row in rows] == [
        ("train-mode", [("2", "train-mode")]),
        ("train-mode grad-mode", [("2", "train-mode"), ("3", "grad-mode")]),
    ]
    assert made.index("test_a[9]</span>") < made.index("test_a[10]</span>")


def test_what_training_mode_explains_stands_beneath_it() -> None:
    moved = violation("state-mutated", remedy="call model.eval()", root=["train-mode", "", "test_it.py:9"])
    told = text(shown(guarded("test_a", violation(), moved)))
    assert "so state-mutated state-mutated, the headline" in told
    assert "call model.eval()" not in told


def test_the_page_of_a_rule_is_named_where_there_is_one() -> None:
    assert "pytest --evalmode-rules train-mode" in text(shown(guarded("test_a", violation("own"), violation())))
    assert "--evalmode-rules" not in shown(guarded("test_a", violation("own")))


def test_exemptions_are_told_with_their_reasons() -> None:
    excused = [guarded(name, exemptions=['train="drop"'], reason="MC dropout") for name in ("test_a", "test_b")]
    told = text(shown(*excused, guarded("test_c", exemptions=['allow="grad-mode"'])))
    assert 'train="drop" : MC dropout 2 tests' in told
    assert 'allow="grad-mode" : no reason given 1 test' in told


def test_known_violations_are_told_apart() -> None:
    tests = [guarded("test_a", violation(), violation("grad-mode")), guarded("test_b", violation())]
    listed = {f"test_it.py::{name}": frozenset({("train-mode", "net")}) for name in ("test_a", "test_b")}
    made = render_page(tests, totals=totals(tests), mode="enforce", strict=False, known=listed)
    new, _, known = made.partition('<h2 id="known">')
    assert "1 of 2 tests was not clean; 2 known violations" in text(new)
    assert "grad-mode, the headline" in text(new)
    assert "train-mode, the headline" not in text(new)
    assert "2 that the baseline lists or an xfail mark expects, in 2 tests" in text(known)
    assert "explains 2 tests" in text(known)
    assert "grad-mode, the headline" not in text(known)
    assert "Known violations" not in text(shown(*tests))
    assert "train-mode" not in render_step_summary(tests, totals(tests), listed)


def test_what_is_expected_to_fail_is_nothing_new() -> None:
    expected = guarded("test_a", violation(), outcome="xfailed")
    assert verdict([expected]) == "1 guarded test, nothing new; 1 known violation"
    assert "Mend first" in text(shown(expected, guarded("test_b", violation())))
    assert render_step_summary([expected], totals([expected])).count("explains") == 0


def test_unmarked_tests_that_ran_models_are_told_with_how_to_guard_them() -> None:
    found = [
        UnmarkedTest("test_it.py::test_a", ["net (Net)"], ["grad-mode"]),
        UnmarkedTest("test_it.py::test_b", ["Net"], []),
    ]
    advice = ["to guard them, add to the configuration:", "  evalmode_mark ="]
    made = render_page([], totals=totals([]), mode="enforce", strict=False, unmarked=found, advice=advice)
    told = text(made)
    assert "Unmarked tests that ran models test_it.py::test_a grad-mode net (Net)" in told
    assert "test_it.py::test_b clean Net" in told
    assert "\n".join(advice) in made


def test_of_tests_that_nobody_asked_it_tells_how_to_ask() -> None:
    tests = [guarded("test_a")]
    made = render_page(tests, totals=totals(tests), mode="enforce", strict=False, unguarded=3)
    assert "3 unmarked tests passed: pytest --evalmode-suggest tells which of them run a model." in text(made)
    assert "--evalmode-suggest" not in shown(*tests)


def test_names_are_shown_as_they_are_and_run_nothing() -> None:
    nasty = violation(NASTY, model=NASTY, subjects=[NASTY, NASTY], message=NASTY, remedy=NASTY, cause=f"{NASTY}:3")
    row = {"name": NASTY, "type": NASTY, "modules": 1, "marks": [[NASTY, NASTY]], "rows": []}
    facts = {
        "findings": [NASTY],
        "since": [f"{NASTY}:1"],
        "exemption": NASTY,
        "trees": {"net": row},
        "events": [["forward", NASTY, f"{NASTY}:1", 1]],
        "fixtures": {},
        "lines": {f"{NASTY}:3": [3, [NASTY]]},
    }
    tests = [guarded(NASTY, nasty, shown=facts, reason=NASTY), guarded(NASTY + "2", exemptions=[NASTY], reason=NASTY)]
    for made in (shown(*tests), render_panel(tests[0])):
        assert "<script>alert" not in made
        assert "&lt;script&gt;alert" in made
    assert Text(shown(*tests)).tags.count("script") == 1  # the page's own


def test_nothing_is_fetched() -> None:
    made = Text(shown(guarded("test_a", FAULT, shown=SHOWN), guarded("test_b", violation())))
    assert all(link.startswith("#") for link in made.links)
    assert not {"link", "img", "iframe"} & set(made.tags)


def test_links_lead_to_what_is_there() -> None:
    made = shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(30)), guarded("test_clean"))
    assert {link[1:] for link in Text(made).links} == set(re.findall(r'id="(\w+)"', made))


def test_a_thousand_failed_tests_are_a_page_of_bounded_size() -> None:
    made = shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(1000)))
    assert len(made) < 4_000_000


def test_a_clean_run_has_nothing_to_mend() -> None:
    told = text(shown(guarded("test_a"), guarded("test_b")))
    assert "2 guarded tests, all clean" in told
    assert "Mend first" not in told
    assert "The tests" not in told


def test_the_panel_has_the_test_alone() -> None:
    told = text(render_panel(guarded("test_a", FAULT, shown=SHOWN)))
    assert "net.bn (BatchNorm1d) was in training mode" in told
    assert "Mend first" not in told


def test_the_step_summary_is_the_same_in_short() -> None:
    tests = [guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(15)]
    tests += [guarded("test_clean", exemptions=['train="drop"'], reason="MC dropout")]
    told = render_step_summary(tests, totals(tests))
    assert told.startswith("### evalmode: 15 of 16 tests were not clean\n")
    assert "1. **`test_it.py:7`** (train-mode): train-mode, the headline" in told
    assert "explains 15 tests" in told
    assert "- `test_it.py::test_3`" in told
    assert '- `train="drop"`: MC dropout (1 test)' in told


def test_the_step_summary_says_names_as_they_are() -> None:
    tests = [guarded("test_a`b|c", violation(message=NASTY, remedy="use *this*_one_ [or](that)"))]
    told = render_step_summary(tests, totals(tests))
    assert "<script>" not in told
    assert r"use \*this\*\_one\_ \[or\](that)" in told
    assert "`` test_it.py::test_a`b|c ``" in told


def test_the_step_summary_is_of_bounded_size() -> None:
    tests = [guarded(f"test_{i}", violation("grad-mode", at=f"test_it.py:{i // 50}")) for i in range(5000)]
    assert len(render_step_summary(tests, totals(tests))) < 100_000
