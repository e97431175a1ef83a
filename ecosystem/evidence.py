"""Writes `docs/evidence.md` from the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ecosystem import record
from ecosystem.environments import ROOT
from ecosystem.record import REVIEW, Row

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

| library | architectures | not clean by design | strict | false alarms | missed | changed by the guard | skipped |
|---|---|---|---|---|---|---|---|
{architectures}

- *Not clean by design*: in eval mode, the model draws random numbers, changes what it saves or uses the statistics of
  the batch. The run without the guard shows the same.
- *Strict*: only `--evalmode-strict` reports the model in eval mode.
- *False alarms* and *missed*: the guard and the run without it disagree. Every disagreement is listed below with its
  review; one in which the guard is right (`true`) is not counted.
- *Skipped*: the model cannot be built or called without downloads, other packages or more time.

{deviations}

## Test suites

Every test of a project is guarded. The outcomes with the plugin off and with `--evalmode=warn` must be the same.

| project | tests | outcomes changed | violations | judged true | false | debatable |
|---|---|---|---|---|---|---|
{suites}

{causes}

## Run it again

```console
$ make ecosystem                    # everything
$ make ecosystem ONLY=zuko,timm     # some of it
$ make ecosystem SHARD=1/4          # one of four parts
$ make ecosystem ACCEPT=1           # also write the record and this page
```

Environments, sources and results are kept in `.ecosystem/`. What has run with the same code is not run again. The
output is Markdown: what is new, what is gone, and the processor time.
"""


def write() -> None:
    """Write the page."""
    PAGE.write_text(render({path.stem: record.load(path) for path in sorted(record.FOLDER.glob("*.jsonl"))}))


def render(files: Mapping[str, list[Row]]) -> str:
    """Return the page.

    Args:
        files: The rows of each file of the record; the names of suites start with `suite-`.
    """
    libraries = {name: rows for name, rows in files.items() if not name.startswith("suite-")}
    suites = {name.removeprefix("suite-"): rows for name, rows in files.items() if name.startswith("suite-")}
    ran = sum("skipped" not in row for rows in libraries.values() for row in rows)
    found = Counter(row["rule"] for rows in suites.values() for row in rows if row.get(REVIEW, "").startswith("true"))
    total = [sum(column) for column in zip(*map(_cells, libraries.values()), strict=True)]
    return TEXT.format(
        ran=ran,
        libraries=len(libraries),
        architectures="\n".join(
            [*(_line(name, _cells(rows)) for name, rows in libraries.items()), _line("all", total)]
        ),
        deviations="\n".join(_deviations(libraries)) or "The guard and the runs without it agree everywhere.",
        suites="\n".join(_suite(name, rows) for name, rows in suites.items()),
        causes="\n".join(f"- `{rule}`: {count} causes" for rule, count in found.most_common()),
    )


def _line(name: str, cells: list[int]) -> str:
    return f"| {name} | " + " | ".join(map(str, cells)) + " |"


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


def _suite(name: str, rows: list[Row]) -> str:
    total = next(row for row in rows if "tests" in row)
    changed = sum("outcome" in row for row in rows)
    violations = [row for row in rows if "at" in row]
    verdicts = Counter(row.get(REVIEW, "").partition(":")[0] for row in violations)
    count = sum(row["count"] for row in violations)
    cells = [total["tests"], changed, count, verdicts["true"], verdicts["false"], verdicts["debatable"]]
    return _line(f"{name} {total['version']}", cells)
