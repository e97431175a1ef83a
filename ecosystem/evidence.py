"""Writes `docs/evidence.md` from the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from ecosystem import record
from ecosystem.environments import ROOT
from ecosystem.record import REVIEW, Row, Seconds
from ecosystem.suites import SUITE

PAGE = ROOT / "docs" / "evidence.md"
TEXT = """\
# Evidence

What the guard says of public models and of the tests of public projects. This page is generated from the reviewed
record in `ecosystem/record`, and `make ecosystem` compares the record with what the guard says today.

## Architectures

{ran} architectures of {libraries} libraries, with random weights. Each is called without the guard and with it: in eval
mode without autograd, after a forgotten `eval()`, and after a forgotten `no_grad()`. A run without the guard shows what
the guard must report: whether outputs, random generators or saved tensors change, and whether an output requires grad.
Outputs, generators, saved tensors and the functions of torch must be the same bit for bit with the guard.

| library | architectures | not clean by design | strict | false alarms | missed | changed | skipped | cost |
|---|---|---|---|---|---|---|---|---|
{architectures}

- *Not clean by design*: in eval mode, the model draws random numbers, changes what it saves or uses the statistics of
  the batch. The run without the guard shows the same.
- *Strict*: only `--evalmode-strict` reports the model in eval mode.
- *False alarms* and *missed*: the guard and the run without it disagree. Every disagreement is listed below with its
  review; one in which the guard is right (`true`) is not counted. *Changed*: by the guard.
- *Skipped*: the model cannot be built or called without downloads, other packages or more time.
- *Cost*: processor time of calls with the guard, divided by that without. Each call has a window of its own, which is
  the most expensive use of the guard, and most of these models are tiny.

Where they disagree:

{deviations}

## Test suites

{tests} tests of {projects} projects, each guarded if it ran, none written with the guard in mind. The outcomes must be
the same with the plugin off, with `--evalmode=warn`, and with `--evalmode=enforce` where there is no violation. A
violation counts once per test, rule and cause, and is judged by these.

| project | tests | outcomes changed | violations | true | false | debatable | cost |
|---|---|---|---|---|---|---|---|
{suites}

An oracle judges the five default rules too: plain patches of `__call__`, with no code of the package. The two disagree
on {differing} of {pairs} pairs of a test and a rule that either reports; the record has the reasons.

### What was found

| rule | what | violations | judged |
|---|---|---|---|
{causes}

## Run it again

| command | what it runs |
|---|---|
| `make ecosystem` | everything, in some 40 minutes on two cores |
| `make ecosystem ONLY=zuko,suite-einops` | some libraries and suites |
| `make ecosystem SHARD=1/4` | one of four parts |
| `make ecosystem ACCEPT=1` | everything, and writes the record and this page |

Environments, sources and results are kept in `.ecosystem/`. What has run with the same code is not run again. The
output is Markdown: what is new, what is gone, and the processor time.
"""


def write() -> None:
    """Write the page."""
    files = {path.stem: record.load(path) for path in sorted(record.FOLDER.glob("*.jsonl"))}
    PAGE.write_text(render(files, record.load_seconds()))


def render(files: Mapping[str, list[Row]], seconds: Seconds) -> str:
    """Return the page.

    Args:
        files: The rows of each file of the record; the names of suites start with `suite-`.
        seconds: The processor time of each of them, by mode.
    """
    libraries = {name: rows for name, rows in files.items() if not name.startswith(SUITE)}
    suites = {name: rows for name, rows in files.items() if name.startswith(SUITE)}
    ran = sum("skipped" not in row for rows in libraries.values() for row in rows)
    counts = {name: _cells(rows) for name, rows in libraries.items()}
    total = [sum(column) for column in zip(*counts.values(), strict=True)]
    of_suites = list(chain.from_iterable(suites.values()))
    return TEXT.format(
        ran=ran,
        libraries=len(libraries),
        architectures="\n".join(
            [
                *(
                    _line(name, *_cells(rows), _ratio(seconds, name, "guarded", "plain"))
                    for name, rows in libraries.items()
                ),
                _line("all", *total, ""),
            ]
        ),
        deviations="\n".join(_deviations(libraries)) or "Nowhere.",
        tests=sum(row.get("tests", 0) for row in of_suites),
        projects=len(suites),
        suites="\n".join(_suite(name, rows, seconds) for name, rows in suites.items()),
        differing=sum(row["count"] for row in of_suites if "only" in row),
        pairs=sum(row.get("judged", 0) for row in of_suites),
        causes="\n".join(_causes(of_suites)),
    )


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _ratio(seconds: Seconds, name: str, mode: str, base: str) -> str:
    known = seconds.get(name, {})
    return f"{known[mode] / known[base]:.2f}" if known.get(base) else ""


def _cells(rows: list[Row]) -> list[int]:
    wrong = [row for row in rows if not row.get(REVIEW, "").startswith("true")]
    kinds = Counter(_kind(deviation) for row in wrong for deviation in row.get("deviations", ()))
    skipped = sum("skipped" in row for row in rows)
    return [
        len(rows) - skipped,
        sum("clean" in row and "deviations" not in row for row in rows),
        sum("strict" in row and "clean" not in row for row in rows),
        kinds["alarm"],
        kinds["missed"],
        kinds["changed"],
        skipped,
    ]


def _deviations(libraries: Mapping[str, list[Row]]) -> list[str]:
    """Return a line for each reason of a deviation."""
    reasons = Counter(
        (name, deviation, row.get(REVIEW, "not reviewed yet"))
        for name, rows in libraries.items()
        for row in rows
        for deviation in row.get("deviations", ())
    )
    return [f"- {name} ({count}): {text}. {review}" for (name, text, review), count in sorted(reasons.items())]


def _kind(deviation: str) -> str:
    if "missed" in deviation:
        return "missed"
    return "alarm" if "without a cause" in deviation or "falsely" in deviation else "changed"


def _suite(name: str, rows: list[Row], seconds: Seconds) -> str:
    total = next(row for row in rows if "tests" in row)
    changed = sum("outcome" in row for row in rows)
    judged = Counter[str]()
    for row in rows:
        if "at" in row:
            judged[row.get(REVIEW, "").partition(":")[0]] += row["count"]
    counts = [judged.total(), judged["true"], judged["false"], judged["debatable"]]
    version = f"{total['name']} {total['version']}"
    return _line(version, total["tests"], changed, *counts, _ratio(seconds, name, "warn", "off"))


def _causes(rows: list[Row]) -> list[str]:
    """Return a line for each rule and reason, whatever the project."""
    causes = Counter[tuple[str, str, str]]()
    for row in rows:
        if "at" in row:
            verdict, _, reason = row.get(REVIEW, "not reviewed yet").partition(": ")
            causes[row["rule"], reason, verdict] += row["count"]
    ordered = sorted(causes.items(), key=lambda cause: (cause[0][0], -cause[1], cause[0]))
    return [_line(f"`{rule}`", reason, count, verdict) for (rule, reason, verdict), count in ordered]
