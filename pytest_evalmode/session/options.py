"""The command line and the ini: what they take, and how it is read into Settings.

Every run of pytest comes here: what takes time to import waits for a test that needs it.
"""

from __future__ import annotations

import os
import reprlib
import shlex
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING, cast

import pytest

from pytest_evalmode.session.settings import BASELINE_INPUT, MODES, Mode, Rank, Settings, is_worker, step_summary_path

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import KnownViolations

_TAKEN = ("filterwarnings", "parametrize", "skip", "skipif", "usefixtures", "xfail")
_WILD = frozenset("*?[")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("evalmode", "evaluation hygiene of PyTorch models")
    # No defaults here: they would hide the ini file.  No choices either: the ini needs the same error.
    group.addoption(
        "--evalmode", metavar="|".join(MODES), help="what a violation does: fail the test, warn, or nothing"
    )
    group.addoption("--evalmode-strict", action="store_true", default=None, help="judge by the strict rules too")
    group.addoption("--evalmode-report", metavar="PATH", help="write the JSON report to this file")
    group.addoption(
        "--evalmode-update-lock", action="store_true", default=False, help="lock what the tests of this run use now"
    )
    group.addoption("--evalmode-baseline", metavar="PATH", help="violations that this file lists are known: none fails")
    group.addoption(
        "--evalmode-update-baseline", action="store_true", default=False, help="rewrite that file from this run"
    )
    group.addoption("--evalmode-all", action="store_true", default=False, help="guard every test, marked or not")
    group.addoption(
        "--evalmode-suggest",
        action="store_true",
        default=False,
        help="watch unmarked tests too, fail nothing, and tell which tests ran inference and should be marked",
    )
    group.addoption(
        "--evalmode-full-read",
        action="store_true",
        default=False,
        help="read every tensor each time, even where the kernel can tell that nobody wrote to it",
    )
    group.addoption("--evalmode-html", metavar="PATH", help="write a page that shows what was found to this file")
    group.addoption(
        "--evalmode-rules",
        metavar="RULE",
        nargs="?",
        const="",
        help="print the rules and their remedies, or the page of one rule, and exit",
    )
    parser.addini("evalmode", "enforce (the default), warn or off")
    parser.addini("evalmode_strict", "judge by the strict rules too", type="bool", default=False)
    parser.addini("evalmode_baseline", "file of known violations, from the rootdir; none of them fails")
    parser.addini("evalmode_marker", "the marker's name", default="inference")
    parser.addini("evalmode_mark", "globs of paths, from the rootdir, whose tests are all guarded", type="args")
    parser.addini("evalmode_allow", "rules that any test may break", type="args")
    parser.addini("evalmode_train", "globs of modules that may be in training mode in any test", type="args")
    parser.addini("evalmode_mutable", "globs of tensors that may change in any test", type="args")


def read_settings(config: pytest.Config) -> Settings:
    """The settings of a run.  Raises UsageError on a value that makes no sense, wherever it was given."""
    marker = config.getini("evalmode_marker")
    if not marker.isidentifier() or iskeyword(marker):
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is no name for a marker; it takes an identifier")
    if marker in _TAKEN:
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is a marker of pytest's own; it takes another identifier")
    rank = _rank()
    mode = _mode(config)
    update = config.getoption("evalmode_update_baseline")
    baseline, known = _baseline(config, update=update)
    if update and mode == "off":
        raise pytest.UsageError("--evalmode-update-baseline: with evalmode=off nothing is guarded; use enforce")
    return Settings(
        mode=mode,
        strict=_strict(config),
        report=_file(config, "--evalmode-report", rank),
        marker=marker,
        guarded_paths=_mark(config),
        ini_exemptions={name: _words(config, f"evalmode_{name}") for name in ("allow", "train", "mutable")},
        root=config.rootpath,
        rank=rank,
        update_lock=config.getoption("evalmode_update_lock"),
        baseline=baseline,
        known=known,
        update_baseline=update,
        suggest=config.getoption("evalmode_suggest"),
        full_read=config.getoption("evalmode_full_read"),
        html=_html(config, rank),
        record_details=_is_shown(config),
    )


def _mode(config: pytest.Config) -> Mode:
    given = config.getoption("evalmode")
    where = "--evalmode" if given is not None else "evalmode (ini)"
    mode = given if given is not None else config.getini("evalmode") or "enforce"
    if mode not in MODES:
        raise pytest.UsageError(f"{where}: {mode!r} is no mode; valid: {', '.join(MODES)}")
    return cast(Mode, mode)


def _strict(config: pytest.Config) -> bool:
    if config.getoption("evalmode_strict"):
        return True
    try:
        return bool(config.getini("evalmode_strict"))
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"evalmode_strict (ini): {error}; valid: true, false") from None


def _rank() -> Rank | None:
    """As `torchrun` tells it, and every launcher that torch's `env://` understands."""
    number, of = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    several = number.isdecimal() and of.isdecimal() and int(of) > 1
    return Rank(int(number), int(of)) if several else None


def _mark(config: pytest.Config) -> tuple[str, ...]:
    if config.getoption("evalmode_all"):
        return (".",)
    globs = tuple(map(normpath, _words(config, "evalmode_mark")))
    for glob in globs if not is_worker(config) else ():
        below = not PurePosixPath(glob).is_absolute() and PurePosixPath(glob).parts[:1] != ("..",)
        if not below or (_WILD.isdisjoint(glob) and not (config.rootpath / glob).exists()):
            raise pytest.UsageError(f"evalmode_mark: {glob!r} is no file or folder below {config.rootpath}")
    return globs


def _words(config: pytest.Config, name: str) -> tuple[str, ...]:
    value: Sequence[str] = config.getini(name)
    return tuple(value)


def _html(config: pytest.Config, rank: Rank | None) -> Path | None:
    path = _file(config, "--evalmode-html", rank)
    if path is not None and find_spec("jinja2") is None:
        raise pytest.UsageError("--evalmode-html: Jinja2 is not installed; pip install 'pytest-evalmode[html]'")
    return path


def _is_shown(config: pytest.Config) -> bool:
    panels = config.pluginmanager.hasplugin("html") and config.getoption("htmlpath", None)
    return bool(config.getoption("evalmode_html") or panels or step_summary_path())


def _file(config: pytest.Config, option: str, rank: Rank | None) -> Path | None:
    """A file to be written; none in a worker, which sends on what it finds."""
    given = config.getoption(option)
    if given is None or is_worker(config):
        return None
    path: Path = config.invocation_params.dir / given
    if not given or not _may_be_written(path):
        raise pytest.UsageError(f"{option}: {reprlib.repr(given)} is no file to write to")
    # Ranks share a file system more often than not; none of their reports is the whole.
    return path if rank is None else path.with_name(f"{path.stem}.rank{rank.number}{path.suffix}")


def _baseline(config: pytest.Config, *, update: bool) -> tuple[Path | None, KnownViolations | None]:
    """The file of known violations, and what it says.  A worker, which may have other files, is told by its controller.

    Raises UsageError where it is missing or broken, with the way to make one.
    """
    if is_worker(config):
        sent = config.workerinput[BASELINE_INPUT]  # type: ignore[attr-defined]
        return None, None if sent is None else _parsed(sent)
    given = config.getoption("evalmode_baseline")
    where = "--evalmode-baseline" if given is not None else "evalmode_baseline (ini)"
    folder = config.invocation_params.dir if given is not None else config.rootpath
    name = given if given is not None else config.getini("evalmode_baseline")
    if not name and given is None:
        if update:
            raise pytest.UsageError("--evalmode-update-baseline: it needs a file to write: --evalmode-baseline=PATH")
        return None, None
    path: Path = folder / name
    if not name or not _may_be_written(path):
        raise pytest.UsageError(f"{where}: {reprlib.repr(name)} is no file to read or write")
    make = f"pytest --evalmode-baseline={shlex.quote(str(name))} --evalmode-update-baseline"
    try:
        return path, _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if update:
            return path, {}
        raise pytest.UsageError(f"{where}: {path} does not exist; to make it, run: {make}") from None
    except (OSError, ValueError) as error:
        told = f"{where}: {path} cannot be used: {error}; mend it, or remove it and run: {make}"
        raise pytest.UsageError(told) from None


def _parsed(text: str) -> KnownViolations:
    from pytest_evalmode.report.baseline import parse_baseline

    return parse_baseline(text)


def _may_be_written(path: Path) -> bool:
    """Whether a file can be there, as far as can be told without making it."""
    try:
        folder = next(folder for folder in path.parents if folder.exists())
        for name in path.relative_to(folder).parts:
            # Each by itself: of a folder that is yet to be made, none says that a name in it is too long.
            with suppress(FileNotFoundError):
                (folder / name).stat()
        return folder.is_dir() and not path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, no folder on the way, a null byte
        return False
