"""How a run is to be guarded, and what kind of run it is."""

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
    """One of several processes that run the same tests together."""

    number: int
    world_size: int

    def __str__(self) -> str:
        return f"rank {self.number} of {self.world_size}"


class Settings(NamedTuple):
    """How a run is to be guarded."""

    mode: Mode
    strict: bool
    report: Path | None
    marker: str
    guarded_paths: tuple[str, ...]
    ini_exemptions: Mapping[str, tuple[str, ...]]
    """What the ini declares as intended, as arguments of a mark."""
    root: Path
    rank: Rank | None
    """Which process of a distributed run this is; None where there is but one."""
    update_lock: bool = False
    """Whether what tests use now is to be locked."""
    baseline: Path | None = None
    """The file of known violations."""
    known: KnownViolations | None = None
    """What it says; None without one."""
    update_baseline: bool = False
    """Whether that file is to say what this run sees."""
    suggest: bool = False
    """Whether to watch every test and fail none."""
    full_read: bool = False
    """Whether to read all tensors each time, whatever the kernel knows of writes to them."""
    html: Path | None = None
    record_details: bool = False
    """Whether anything is written that shows more of a test than the JSON report tells; in workers, too."""

    @property
    def policy(self) -> Policy:
        """That of the ini: it holds for every test.  Its rules are checked as the run begins."""
        from pytest_evalmode.policy import read_policy

        return read_policy("evalmode ini", self.ini_exemptions, self.ini_exemptions["allow"])

    @property
    def applied_baseline(self) -> KnownViolations | None:
        """What the baseline lists, if the run goes by it: one that updates it does not."""
        return None if self.update_baseline else self.known

    @property
    def no_guard_marker(self) -> str:
        """The marker that takes a test out of what is guarded by its path."""
        return f"no_{self.marker}_guard"

    def is_watched(self, item: pytest.Item) -> bool:
        """Whether a test is to be watched: it is guarded, or might be suggested."""
        return self.is_guarded(item) or (self.suggest and self.mode != "off" and not self._leaves_out(item))

    def is_guarded(self, item: pytest.Item) -> bool:
        """Whether a test is to be guarded: it is marked, asks for the fixture, or lies where all tests are guarded."""
        if self.mode == "off":
            return False
        if item.get_closest_marker(self.marker) is not None or "evalmode" in getattr(item, "fixturenames", ()):
            return True
        return self._guards_all_of(item.path) and not self._leaves_out(item)

    def _leaves_out(self, item: pytest.Item) -> bool:
        return item.get_closest_marker(self.no_guard_marker) is not None

    def _guards_all_of(self, path: Path) -> bool:
        """Whether a glob of `evalmode_mark` names a file or a folder above it."""
        if not self.guarded_paths or not path.is_relative_to(self.root):
            return False
        relative = path.relative_to(self.root)
        names = [relative.as_posix(), *(folder.as_posix() for folder in relative.parents if folder != PurePath("."))]
        return "." in self.guarded_paths or any(
            fnmatchcase(name, glob) for name in names for glob in self.guarded_paths
        )


SETTINGS = pytest.StashKey[Settings]()
BASELINE_INPUT = "evalmode_baseline"
"""Under which a worker is sent the text of the baseline."""


def is_whole_suite(config: pytest.Config) -> bool:
    """Whether every test was asked to run: none named, filtered out or kept from running by an earlier failure."""
    if config.args_source is config.ArgsSource.ARGS:
        return False
    if config.args_source is config.ArgsSource.INVOCATION_DIR and config.invocation_params.dir != config.rootpath:
        return False
    filters = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "maxfail", "stepwise")
    return not any(config.getoption(name, None) for name in filters)


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for an xdist controller, which may be on another machine with other files."""
    return hasattr(config, "workerinput")


def uses_toml(config: pytest.Config) -> bool:
    """Whether the project is configured in TOML."""
    return config.inipath is not None and config.inipath.suffix == ".toml"


def plain_nodeid(nodeid: str, config: pytest.Config) -> str:
    """The node id of a test as it is without xdist, which adds the name of a group under `--dist=loadgroup`."""
    grouped = config.getoption("dist", None) == "loadgroup" or config.getoption("loadgroup", False)
    return nodeid.rpartition("@")[0] if grouped and nodeid.rfind("@") > nodeid.rfind("]") else nodeid


def step_summary_path() -> Path | None:
    """Where GitHub takes the Markdown from that it shows of a job, if this is one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path and os.environ.get("GITHUB_ACTIONS") == "true" else None
