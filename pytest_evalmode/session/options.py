"""Command-line options and ini keys, and how they are read into Settings.

Every pytest run imports this module, so slow imports are deferred.
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

_PYTEST_MARKERS = ("filterwarnings", "parametrize", "skip", "skipif", "usefixtures", "xfail")
_WILDCARDS = frozenset("*?[")


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("evalmode", "evaluation hygiene of PyTorch models")
    # No defaults here, which would hide the ini.  No choices either: the ini needs the same error message.
    group.addoption("--evalmode", metavar="|".join(MODES), help="fail, warn (EvalModeWarning), or do nothing")
    group.addoption("--evalmode-strict", action="store_true", default=None, help="also apply the strict rules")
    group.addoption("--evalmode-report", metavar="PATH", help="write the JSON report")
    group.addoption(
        "--evalmode-update-lock", action="store_true", default=False, help="update the lock files from this run"
    )
    group.addoption(
        "--evalmode-baseline", metavar="PATH", help="do not fail on violations listed in this baseline file"
    )
    group.addoption(
        "--evalmode-update-baseline", action="store_true", default=False, help="update the baseline file from this run"
    )
    group.addoption(
        "--evalmode-all", action="store_true", default=False, help="guard every test of this run, marked or not"
    )
    group.addoption(
        "--evalmode-suggest",
        action="store_true",
        default=False,
        help="fail no test; report which unmarked tests ran inference and should be marked",
    )
    group.addoption(
        "--evalmode-full-read",
        action="store_true",
        default=False,
        help="read every tensor each time, even where the kernel reports that its memory was not written",
    )
    group.addoption("--evalmode-html", metavar="PATH", help="write the HTML report")
    group.addoption(
        "--evalmode-rules",
        metavar="RULE",
        nargs="?",
        const="",
        help="print the rules and their fixes, or the page of one rule, and exit",
    )
    parser.addini("evalmode", "fail, warn (EvalModeWarning), or do nothing: enforce (default), warn or off")
    parser.addini("evalmode_strict", "also apply the strict rules", type="bool", default=False)
    parser.addini("evalmode_baseline", "do not fail on violations listed in this baseline file (from the rootdir)")
    parser.addini("evalmode_marker", "name of the marker", default="inference")
    parser.addini("evalmode_mark", "globs of paths (from the rootdir) whose tests are all guarded", type="args")
    parser.addini("evalmode_allow", "rules that any test may break", type="args")
    parser.addini("evalmode_train", "globs of modules that may be in training mode in any test", type="args")
    parser.addini("evalmode_mutable", "globs of tensors that may change in any test", type="args")


def read_settings(config: pytest.Config) -> Settings:
    """Return the settings of a run.

    Raises:
        pytest.UsageError: an option or ini key has an invalid value.
    """
    marker = config.getini("evalmode_marker")
    if not marker.isidentifier() or iskeyword(marker):
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is not a valid marker name (use a Python identifier)")
    if marker in _PYTEST_MARKERS:
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is one of pytest's own markers (choose another name)")
    rank = _read_rank()
    mode = _read_mode(config)
    update = config.getoption("evalmode_update_baseline")
    baseline, known = _read_baseline(config, update=update)
    if update and mode == "off":
        raise pytest.UsageError("--evalmode-update-baseline: evalmode=off guards no test; use evalmode=enforce")
    return Settings(
        mode=mode,
        strict=_read_strict(config),
        report=_read_output_path(config, "--evalmode-report", rank),
        marker=marker,
        guarded_paths=_read_guarded_paths(config),
        ini_exemptions={name: _read_list(config, f"evalmode_{name}") for name in ("allow", "train", "mutable")},
        root=config.rootpath,
        rank=rank,
        update_lock=config.getoption("evalmode_update_lock"),
        baseline=baseline,
        known=known,
        update_baseline=update,
        suggest=config.getoption("evalmode_suggest"),
        full_read=config.getoption("evalmode_full_read"),
        html=_read_html_path(config, rank),
        record_details=_needs_details(config),
    )


def _read_mode(config: pytest.Config) -> Mode:
    given = config.getoption("evalmode")
    where = "--evalmode" if given is not None else "evalmode (ini)"
    mode = given if given is not None else config.getini("evalmode") or "enforce"
    if mode not in MODES:
        raise pytest.UsageError(f"{where}: invalid mode {mode!r} (choose from {', '.join(MODES)})")
    return cast(Mode, mode)


def _read_strict(config: pytest.Config) -> bool:
    if config.getoption("evalmode_strict"):
        return True
    try:
        return bool(config.getini("evalmode_strict"))
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"evalmode_strict (ini): {error} (choose from true, false)") from None


def _read_rank() -> Rank | None:
    """Read the rank from the variables that `torchrun` sets, as torch's `env://` initialization does."""
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    is_distributed = rank.isdecimal() and world_size.isdecimal() and int(world_size) > 1
    return Rank(int(rank), int(world_size)) if is_distributed else None


def _read_guarded_paths(config: pytest.Config) -> tuple[str, ...]:
    if config.getoption("evalmode_all"):
        return (".",)
    globs = tuple(map(normpath, _read_list(config, "evalmode_mark")))
    for glob in globs if not is_worker(config) else ():
        is_below = not PurePosixPath(glob).is_absolute() and PurePosixPath(glob).parts[:1] != ("..",)
        if not is_below or (_WILDCARDS.isdisjoint(glob) and not (config.rootpath / glob).exists()):
            raise pytest.UsageError(f"evalmode_mark: {glob!r} is not a file or folder below {config.rootpath}")
    return globs


def _read_list(config: pytest.Config, name: str) -> tuple[str, ...]:
    value: Sequence[str] = config.getini(name)
    return tuple(value)


def _read_html_path(config: pytest.Config, rank: Rank | None) -> Path | None:
    path = _read_output_path(config, "--evalmode-html", rank)
    if path is not None and find_spec("jinja2") is None:
        raise pytest.UsageError("--evalmode-html requires Jinja2; run: pip install 'pytest-evalmode[html]'")
    return path


def _needs_details(config: pytest.Config) -> bool:
    panels = config.pluginmanager.hasplugin("html") and config.getoption("htmlpath", None)
    return bool(config.getoption("evalmode_html") or panels or step_summary_path())


def _read_output_path(config: pytest.Config, option: str, rank: Rank | None) -> Path | None:
    """Return the path of a file to write; None without the option and in an xdist worker, which writes no files."""
    given = config.getoption(option)
    if given is None or is_worker(config):
        return None
    path: Path = config.invocation_params.dir / given
    if not given or not _is_writable(path):
        raise pytest.UsageError(f"{option}: cannot write to {reprlib.repr(given)}")
    # Ranks usually share a file system, and each has a report of its own.
    return path if rank is None else path.with_name(f"{path.stem}.rank{rank.number}{path.suffix}")


def _read_baseline(config: pytest.Config, *, update: bool) -> tuple[Path | None, KnownViolations | None]:
    """Return the path of the baseline and its known violations.

    A worker gets the known violations from its controller, because it may run on a machine with other files.

    Raises:
        pytest.UsageError: the file is missing or broken; the message says how to create one.
    """
    if is_worker(config):
        sent = config.workerinput[BASELINE_INPUT]  # type: ignore[attr-defined]
        return None, None if sent is None else _parse_baseline(sent)
    given = config.getoption("evalmode_baseline")
    where = "--evalmode-baseline" if given is not None else "evalmode_baseline (ini)"
    folder = config.invocation_params.dir if given is not None else config.rootpath
    name = given if given is not None else config.getini("evalmode_baseline")
    if not name and given is None:
        if update:
            raise pytest.UsageError("--evalmode-update-baseline requires --evalmode-baseline=PATH")
        return None, None
    path: Path = folder / name
    if not name or not _is_writable(path):
        raise pytest.UsageError(f"{where}: cannot read or write {reprlib.repr(name)}")
    command = f"pytest --evalmode-baseline={shlex.quote(str(name))} --evalmode-update-baseline"
    try:
        return path, _parse_baseline(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if update:
            return path, {}
        raise pytest.UsageError(f"{where}: {path} does not exist; to create it, run: {command}") from None
    except (OSError, ValueError) as error:
        message = f"{where}: {path} cannot be used: {error}; fix it, or delete it and run: {command}"
        raise pytest.UsageError(message) from None


def _parse_baseline(text: str) -> KnownViolations:
    from pytest_evalmode.report.baseline import parse_baseline

    return parse_baseline(text)


def _is_writable(path: Path) -> bool:
    """Return whether a file can be written at a path, as far as this can be checked without creating it."""
    try:
        folder = next(folder for folder in path.parents if folder.exists())
        for name in path.relative_to(folder).parts:
            # Check each name in the existing folder: below a missing folder, `stat` does not report a name as too long.
            with suppress(FileNotFoundError):
                (folder / name).stat()
        return folder.is_dir() and not path.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, no folder on the way, a null byte
        return False
