"""The reviewed record of the ecosystem check, and the page that is generated from it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("ecosystem", reason="the source distribution does not have it")

from ecosystem import __main__ as program
from ecosystem import evidence, record, worker

ROWS: list[record.Row] = [{"name": "b", "strict": ["buffer-mutated"]}, {"name": "a"}]


def files() -> dict[str, list[record.Row]]:
    return {path.stem: record.load(path) for path in sorted(record.FOLDER.glob("*.jsonl"))}


def test_rows_are_saved_sorted(tmp_path: Path) -> None:
    record.save(tmp_path / "x.jsonl", ROWS)
    assert record.load(tmp_path / "x.jsonl") == ROWS[::-1]


def test_the_same_rows_in_another_order_do_not_differ(tmp_path: Path) -> None:
    record.save(tmp_path / "x.jsonl", ROWS)
    assert record.compare(tmp_path / "x.jsonl", ROWS[::-1]) == ([], [])


def test_a_row_that_changes_is_gone_and_new(tmp_path: Path) -> None:
    record.save(tmp_path / "x.jsonl", ROWS)
    changed = {"name": "a", "deviations": ["batch-stats without a cause"]}
    assert record.compare(tmp_path / "x.jsonl", [ROWS[0], changed]) == ([changed], [{"name": "a"}])


def test_a_row_of_another_shard_is_not_gone(tmp_path: Path) -> None:
    record.save(tmp_path / "x.jsonl", ROWS)
    changed = {"name": "a", "skipped": "ValueError"}
    assert record.compare(tmp_path / "x.jsonl", [changed], complete=False) == ([changed], [{"name": "a"}])


def test_a_review_survives_as_long_as_its_row_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    record.save(path, [ROWS[0] | {record.REVIEW: "true: a cache"}, ROWS[1]])
    assert record.compare(path, ROWS) == ([], [])
    record.save(path, ROWS)
    assert not record.unreviewed(record.load(path))
    record.save(path, [ROWS[0] | {"deviations": ["grad-mode is missed"]}, ROWS[1]])
    assert len(record.unreviewed(record.load(path))) == 1


def test_a_review_survives_another_count(tmp_path: Path) -> None:
    path, row = tmp_path / "x.jsonl", {"name": "a", "rule": "train-mode", "at": "", "fix": "", "count": 3}
    record.save(path, [row | {record.REVIEW: "true: a cache"}])
    more = row | {"count": 6}
    assert record.compare(path, [more]) == ([more], [row | {record.REVIEW: "true: a cache"}])
    assert record.compare(path, [row | {"count": 5}]) == ([], [])
    record.save(path, [more])
    assert record.load(path) == [more | {record.REVIEW: "true: a cache"}]


def test_what_a_plain_run_shows_too_needs_no_review() -> None:
    assert not record.unreviewed([{"name": "a", "clean": ["random-forward"]}, {"name": "b", "skipped": "ValueError"}])


def test_the_record_is_reviewed() -> None:
    assert {name: missing for name, rows in files().items() if (missing := record.unreviewed(rows))} == {}


def test_the_page_is_what_the_record_generates() -> None:
    assert evidence.PAGE.read_text() == evidence.render(files(), record.load_seconds())


def test_the_page_counts_alarms_misses_and_changes() -> None:
    page = evidence.render(
        {
            "nets": [
                {"name": "a"},
                {"name": "b", "deviations": ["batch-stats without a cause"], "review": "debatable: see there"},
                {"name": "c", "deviations": ["a forgotten eval() is missed", "the guard changes the result"]},
                {"name": "d", "clean": ["random-forward"]},
                {"name": "e", "strict": ["buffer-mutated"]},
                {"name": "f", "skipped": "ValueError"},
            ],
            "suite-flows": [
                {"name": "flows", "version": "1.0", "tests": 7, "guarded": 7, "judged": 4},
                {"name": "flows", "rule": "grad-mode", "at": "Flow", "count": 2, "review": "true: no no_grad"},
                {"name": "flows", "rule": "grad-mode", "at": "", "count": 3, "review": "true: no no_grad"},
                {"name": "flows", "rule": "train-mode", "at": "", "count": 1, "review": "false: a cache"},
                {"name": "flows", "rule": "train-mode", "only": "guard", "count": 1, "review": "oracle: a cache"},
            ],
        },
        {"nets": {"plain": 2.0, "guarded": 3.0}, "suite-flows": {"off": 10.0, "warn": 11.0, "enforce": 12.0}},
    )
    assert "| nets | 5 | 1 | 1 | 1 | 1 | 1 | 1 | 1.50 |" in page
    assert "- nets (1): batch-stats without a cause. debatable: see there" in page
    assert "7 tests of 1 projects" in page
    assert "| flows 1.0 | 7 | 0 | 6 | 5 | 1 | 0 | 1.10 |" in page
    assert "| `grad-mode` | no no_grad | 5 | true |" in page
    assert "| `train-mode` | a cache | 1 | false |" in page
    assert "1 of 4 pairs" in page


def test_a_section_names_what_is_new_and_counts_what_is_skipped() -> None:
    row = {"name": "a", "deviations": ["grad-mode is missed"]}
    text = program.section("nets", [row, {"name": "b", "skipped": "ValueError"}], [row], [], {"plain": 1.25})
    assert "1 rows, 1 skipped; processor time: 1.2 s plain." in text
    assert '- New: `{"name": "a", "deviations": ["grad-mode is missed"]}`' in text
    assert "As recorded." not in text


def test_a_shard_is_a_number_and_a_count() -> None:
    assert program.shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "2", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError):
            program.shard(text)


def test_an_unknown_library_is_refused() -> None:
    assert program.names("zuko,timm") == ["zuko", "timm"]
    with pytest.raises(argparse.ArgumentTypeError, match="'tim'"):
        program.names("zuko,tim")


def test_the_record_of_shards_is_not_accepted() -> None:
    with pytest.raises(SystemExit):
        program.main(["--accept", "--shard", "1/2"])


def test_a_reason_is_the_same_in_each_process() -> None:
    assert worker.shortened("OSError: /tmp/a/b.json\n at 0x7f3e") == "OSError: b.json at"
