"""`python -m benchmarks`: run all sections, or those of `--only`; print a table, write results.json and results.png."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Row

SECTIONS = ("state", "forward", "training", "memory", "suite", "idle", "device")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="the sections to run")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder for the results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}
    for section in arguments.only:
        print(f"\n{section:<58}{'measured':>12}{'bar':>8}{'aim':>8}")
        rows[section] = list(print_rows(import_module(f"benchmarks.{section}").run()))
    write(rows, arguments.output / "results.json")
    draw([row for section in rows.values() for row in section], arguments.output / "results.png")


def print_rows(rows: Iterator[Row]) -> Iterator[Row]:
    """Print and yield each row as soon as it is measured."""
    for row in rows:
        limits = "".join(f"{'' if limit is None else limit:>8}" for limit in (row.bar, row.aim))
        print(f"  {row.what:<56}{row.value:>9.3g} {row.unit:<2}{limits}".rstrip(), flush=True)
        yield row


def write(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    sections = {section: [asdict(row) for row in rows] for section, rows in rows.items()}
    path.write_text(json.dumps({**machine, **sections}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plot how the cost grows with the model's size, and each row that has a limit relative to this limit."""
    try:
        plt = import_module("matplotlib.pyplot")
    except ImportError:
        print(f"\n{path.name} was not written: matplotlib is not installed")
        return
    limited = [row for row in rows if row.aim or row.bar]
    panels = [(draw_growth, [row for row in rows if row.size], 10), (draw_shares, limited, 2 + len(limited))]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return
    heights = [height for *_, height in panels]
    figure, axes = plt.subplots(
        len(panels), figsize=(9, 0.4 * sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for (draw_panel, panel_rows, _), panel in zip(panels, axes.flat, strict=True):
        draw_panel(panel, panel_rows)
    figure.savefig(path, dpi=150)


def draw_growth(axes: Any, rows: Sequence[Row]) -> None:
    """Plot milliseconds over megabytes, one line per check; the limit is 2.5 reads."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row.what.rpartition(": ")[2], []).append(((row.size or 0) / 1e6, row.value))
    lines["the limit: 2.5 reads"] = [(size, 2.5 * read) for size, read in lines["one read"]]
    for what, points in lines.items():
        style = "k:" if what.startswith("the limit") else "o-"
        axes.loglog(*zip(*sorted(points), strict=True), style, label=what)
    axes.set_xlabel("size of the model in MB")
    axes.set_ylabel("ms")
    axes.legend()


def draw_shares(axes: Any, rows: Sequence[Row]) -> None:
    limits = [row.aim or row.bar or 1 for row in rows]
    shares = [max(row.value / limit, 0) for row, limit in zip(rows, limits, strict=True)]
    bars = axes.barh([row.what for row in rows], shares, color=["C0" if share <= 1 else "C3" for share in shares])
    labels = [f"{row.value:.2g} of {limit:g} {row.unit}" for row, limit in zip(rows, limits, strict=True)]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("measured, relative to the limit (less is better)")
    axes.margins(x=0.25)


if __name__ == "__main__":
    main()
