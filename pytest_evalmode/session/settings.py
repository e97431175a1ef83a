"""The settings of a run, and helpers that say what kind of run it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import pytest

if TYPE_CHECKING:
    from pytest_evalmode.policy import Policy
    from pytest_evalmode.report.baseline import KnownViolations

Mode = Literal["enforce", "warn", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Rank(NamedTuple):
    """One process of a distributed run; all of them run the same tests."""

    number: int
    world_size: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"


class Settings(NamedTuple):
    """The settings of a run, read from its command line, ini and environment."""

    mode: Mode
    strict: bool
    report: Path | None
    marker: str
    guarded_paths: tuple[str, ...]
    ini_exemptions: Mapping[str, tuple[str, ...]]
    """The exemptions of the ini, as arguments of a mark."""
    root: Path
    rank: Rank | None
    """This process in a distributed run; None if there is only one process."""
    update_lock: bool
    """Whether to update the lock files from this run."""
    baseline: Path | None
    """The baseline file."""
    known: KnownViolations | None
    """The violations that the baseline lists; None without a baseline."""
    update_baseline: bool
    """Whether to update the baseline from this run."""
    suggest: bool
    """Whether to also watch unmarked tests, and fail no test."""
    full_read: bool
    """Whether to read every tensor each time, even where the kernel reports that its memory was not written."""
    html: Path | None
    record_details: bool
    """Whether to record what only the HTML report and the step summary show; set in workers too."""

    @property
    def policy(self) -> Policy:
        """The policy of the ini, which applies to every test.  Its rule names are checked at the start of the run."""
        from pytest_evalmode.policy import read_policy

        return read_policy("evalmode ini", self.ini_exemptions, self.ini_exemptions["allow"])

    @property
    def applied_baseline(self) -> KnownViolations | None:
        """The known violations that do not fail; None if this run updates the baseline."""
        return None if self.update_baseline else self.known

    @property
    def no_guard_marker(self) -> str:
        """The marker that excludes a test from `evalmode_mark` and `--evalmode-all`."""
        return f"no_{self.marker}_guard"

    def is_watched(self, item: pytest.Item) -> bool:
        """Return whether a test is watched: it is guarded, or `--evalmode-suggest` may suggest marking it."""
        return self.is_guarded(item) or (self.suggest and self.mode != "off" and not self._is_excluded(item))

    def is_guarded(self, item: pytest.Item) -> bool:
        """Return whether a test is guarded: by its mark, by requesting the fixture, or by its path."""
        if self.mode == "off":
            return False
        if item.get_closest_marker(self.marker) is not None or "evalmode" in getattr(item, "fixturenames", ()):
            return True
        return self._is_guarded_path(item.path) and not self._is_excluded(item)

    def _is_excluded(self, item: pytest.Item) -> bool:
        return item.get_closest_marker(self.no_guard_marker) is not None

    def _is_guarded_path(self, path: Path) -> bool:
        """Return whether a glob of `evalmode_mark` matches a file or one of its parent folders."""
        if not self.guarded_paths or not path.is_relative_to(self.root):
            return False
        relative = path.relative_to(self.root)
        names = [relative.as_posix(), *(folder.as_posix() for folder in relative.parents if folder != PurePath("."))]
        globs = self.guarded_paths
        return "." in globs or any(fnmatchcase(name, glob) for name in names for glob in globs)


SETTINGS = pytest.StashKey[Settings]()
BASELINE_INPUT = "evalmode_baseline"
"""The key of `workerinput` under which a worker gets the text of the baseline."""


def is_whole_suite(config: pytest.Config) -> bool:
    """Return whether the run covers every test: no arguments or filters, and nothing that stops it at a failure."""
    if config.args_source is config.ArgsSource.ARGS:
        return False
    if config.args_source is config.ArgsSource.INVOCATION_DIR and config.invocation_params.dir != config.rootpath:
        return False
    filters = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "maxfail", "stepwise")
    return not any(config.getoption(name, None) for name in filters)


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is an xdist worker; its controller may be on another machine with other files."""
    return hasattr(config, "workerinput")


def uses_toml(config: pytest.Config) -> bool:
    """Return whether pytest is configured in a TOML file."""
    return config.inipath is not None and config.inipath.suffix == ".toml"


def plain_nodeid(nodeid: str, config: pytest.Config) -> str:
    """Return a node id without the group name that xdist appends to it under `--dist=loadgroup`."""
    has_groups = config.getoption("dist", None) == "loadgroup" or config.getoption("loadgroup", False)
    return nodeid.rpartition("@")[0] if has_groups and nodeid.rfind("@") > nodeid.rfind("]") else nodeid


def step_summary_path() -> Path | None:
    """Return the file whose Markdown GitHub Actions shows as the summary of a step; None outside GitHub Actions."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path and os.environ.get("GITHUB_ACTIONS") == "true" else None
