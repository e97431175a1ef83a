"""The page, a test's panel and the step summary, made of plain records."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from pytest_evalmode.report.markdown import markdown
from pytest_evalmode.report.page import page, panel, verdict
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
            "modules": 3,
            "marks": [],
            "rows": [
                {"name": "bn", "type": "BatchNorm1d", "modules": 1, "marks": [["training", "since 7"]], "rows": []},
                {"name": "a … b", "type": "", "times": 2, "modules": 2, "marks": [], "rows": []},
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
FAULT = violation(details={"since": "test_it.py:7"})


class Text(HTMLParser):
    """The text of a page, and the attributes by which a browser would fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def shown(*tests: dict[str, Any]) -> str:
    return page(list(tests), totals=totals(list(tests)), mode="enforce", strict=False)


def text(page: str) -> str:
    return " ".join(Text(page).words)


def test_the_verdict() -> None:
    clean, dirty = guarded("test_a"), guarded("test_b", violation())

    def said(*tests: dict[str, Any]) -> str:
        return verdict(tests, totals(list(tests)))

    assert said(clean, clean) == "2 guarded tests, all clean"
    assert said(clean, dirty) == "1 of 2 tests was not clean"
    assert said(dirty, dirty) == "2 of 2 tests were not clean"
    assert "not known" in said(clean, guarded("test_c", unjudged=True))
    assert said() == "no test was guarded"


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
    ):
        assert part in told, part


def test_the_first_to_mend_comes_before_the_tests() -> None:
    told = text(shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(15)), guarded("test_clean")))
    assert told.index("Mend first") < told.index("explains 15 tests") < told.index("Rules and tests")


def test_the_grid_tells_which_test_broke_which_rule() -> None:
    made = shown(guarded("test_a", violation(), violation("grad-mode")), guarded("test_b", violation()))
    rows = re.findall(r'<tr data-test="(\d+)" data-rules="([^"]*)">(.*?)</tr>', made)
    assert [(number, rules, row.count("●")) for number, rules, row in rows] == [
        ("0", "train-mode grad-mode", 2),
        ("1", "train-mode", 1),
    ]


def test_exemptions_are_told_with_their_reasons() -> None:
    excused = [guarded(name, exemptions=['train="drop"'], reason="MC dropout") for name in ("test_a", "test_b")]
    told = text(shown(*excused, guarded("test_c", exemptions=['allow="grad-mode"'])))
    assert 'train="drop" : MC dropout 2 tests' in told
    assert 'allow="grad-mode" : no reason given 1 test' in told


def test_known_violations_are_told_apart() -> None:
    tests = [guarded("test_a", violation(), violation("grad-mode")), guarded("test_b", violation())]
    listed = {"test_it.py::test_a": frozenset({("train-mode", "net")})}
    told = text(page(tests, totals=totals(tests), mode="enforce", strict=False, known=listed))
    assert "1 that the baseline lists" in told
    assert told.count("Known violations") == 1
    assert "Known violations" not in text(shown(*tests))


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
    for made in (shown(*tests), panel(tests[0])):
        assert "<script>alert" not in made
        assert "&lt;script&gt;alert" in made
    assert Text(shown(*tests)).tags.count("script") == 1  # the page's own


def test_nothing_is_fetched() -> None:
    made = Text(shown(guarded("test_a", FAULT, shown=SHOWN), guarded("test_b", violation())))
    assert all(link.startswith("#") for link in made.links)
    assert not {"link", "img", "iframe"} & set(made.tags)


def test_links_lead_to_what_is_there() -> None:
    made = shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(30)), guarded("test_clean"))
    assert {link[1:] for link in Text(made).links} == set(re.findall(r'id="(t\d+)"', made))


def test_a_thousand_failed_tests_are_a_page_of_bounded_size() -> None:
    made = shown(*(guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(1000)))
    assert len(made) < 4_000_000


def test_a_clean_run_has_nothing_to_mend() -> None:
    told = text(shown(guarded("test_a"), guarded("test_b")))
    assert "2 guarded tests, all clean" in told
    assert "Mend first" not in told
    assert "Rules and tests" not in told


def test_the_panel_has_the_test_alone() -> None:
    told = text(panel(guarded("test_a", FAULT, shown=SHOWN)))
    assert "net.bn (BatchNorm1d) was in training mode" in told
    assert "Mend first" not in told


def test_the_step_summary_is_the_same_in_short() -> None:
    tests = [guarded(f"test_{i}", FAULT, shown=SHOWN) for i in range(15)]
    tests += [guarded("test_clean", exemptions=['train="drop"'], reason="MC dropout")]
    told = markdown(tests, totals(tests))
    assert told.startswith("### evalmode: 15 of 16 tests were not clean\n")
    assert "1. **`test_it.py:7`** (train-mode): train-mode, the headline" in told
    assert "explains 15 tests" in told
    assert "- `test_it.py::test_3`" in told
    assert '- `train="drop"`: MC dropout (1 test)' in told


def test_the_step_summary_says_names_as_they_are() -> None:
    tests = [guarded("test_a`b|c", violation(message=NASTY, remedy="use *this*_one_ [or](that)"))]
    told = markdown(tests, totals(tests))
    assert "<script>" not in told
    assert r"use \*this\*\_one\_ \[or\](that)" in told
    assert "`` test_it.py::test_a`b|c ``" in told


def test_the_step_summary_is_of_bounded_size() -> None:
    tests = [guarded(f"test_{i}", violation("grad-mode", at=f"test_it.py:{i // 50}")) for i in range(5000)]
    assert len(markdown(tests, totals(tests))) < 100_000
