"""Writes `docs/evidence.md` from the record."""

from __future__ import annotations

from collections import Counter

from ecosystem import record
from ecosystem.environments import ROOT
from ecosystem.record import REVIEW, Row

PAGE = ROOT / "docs" / "evidence.md"
TEXT = """\
# Evidence

What the guard says of public models and of the tests of public projects. This page is generated from the reviewed
record in `ecosystem/record`, and `make ecosystem` compares the record with what the guard says today.

## Architectures

Each model is built with random weights and called without the guard and with it: in eval mode without autograd, after a
forgotten `eval()`, and after a forgotten `no_grad()`. Outputs, random generators, state and the functions of torch must
be the same bit for bit with and without the guard.

| library | architectures | false alarms | missed `eval()` | missed `no_grad()` | changed by the guard |
|---|---|---|---|---|---|
{architectures}

A model that is not clean in eval mode, because it samples or keeps statistics by design, is not counted as clean:
{by_design} architectures. Each deviation has a review in the record.

## Test suites

Every test of a project is guarded. The outcomes with the plugin off and with `--evalmode=warn` must be the same.

| project | tests | outcomes changed | violations | judged true | false | debatable |
|---|---|---|---|---|---|---|
{suites}

## What was found

{causes}

## Run it again

```console
$ make ecosystem                     # everything: some hours on two cores
$ make ecosystem ONLY="zuko timm"    # some of it
```

Environments, sources and results are kept in `.ecosystem/`. What has run with the same code of the package is not run
again. The output is Markdown: what is new, what is gone, and the processor time.
"""


def write() -> None:
    """Write the page."""
    files = {path.stem: record.load(path) for path in sorted(record.FOLDER.glob("*.jsonl"))}
    libraries = {name: rows for name, rows in files.items() if not name.startswith("suite-")}
    suites = {name.removeprefix("suite-"): rows for name, rows in files.items() if name.startswith("suite-")}
    by_design = sum(bool(row.get("clean")) for rows in libraries.values() for row in rows)
    found = Counter(row["rule"] for rows in suites.values() for row in rows if row.get(REVIEW, "").startswith("true"))
    PAGE.write_text(
        TEXT.format(
            architectures="\n".join(_architectures(name, rows) for name, rows in libraries.items()),
            by_design=by_design,
            suites="\n".join(_suite(name, rows) for name, rows in suites.items()),
            causes="\n".join(f"- `{rule}`: {count} causes" for rule, count in found.most_common()) or "Nothing yet.",
        )
    )


def _architectures(name: str, rows: list[Row]) -> str:
    deviations = Counter(_kind(deviation) for row in rows for deviation in row.get("deviations", ()))
    ran = sum("error" not in row for row in rows)
    cells = [deviations[kind] for kind in ("reported", "eval", "no_grad", "changed")]
    return f"| {name} | {ran} | " + " | ".join(map(str, cells)) + " |"


def _kind(deviation: str) -> str:
    if "eval()" in deviation:
        return "eval"
    if "no_grad()" in deviation and "missed" in deviation:
        return "no_grad"
    return "changed" if "changes the result" in deviation or "left behind" in deviation else "reported"


def _suite(name: str, rows: list[Row]) -> str:
    total = next(row for row in rows if "tests" in row)
    changed = sum("outcome" in row for row in rows)
    violations = [row for row in rows if "at" in row]
    verdicts = Counter(row.get(REVIEW, "").partition(":")[0] for row in violations)
    count = sum(row["count"] for row in violations)
    cells = [total["tests"], changed, count, verdicts["true"], verdicts["false"], verdicts["debatable"]]
    return f"| {name} {total['version']} | " + " | ".join(map(str, cells)) + " |"
