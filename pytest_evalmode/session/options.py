"""Command-line options and ini keys, and how they are read into Settings.

Every pytest run imports this module, so slow imports are deferred.
"""

from __future__ import annotations

import os
import shlex
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

    def add_flag(name: str, help: str) -> None:
        group.addoption(name, action="store_true", help=help)

    # No defaults, which would hide the ini.  No choices either: the ini needs the same error message.
    group.addoption("--evalmode", metavar="|".join(MODES), help="fail, warn (EvalModeWarning), or do nothing")
    add_flag("--evalmode-strict", "also apply the strict rules")
    group.addoption("--evalmode-report", metavar="PATH", help="write the JSON report")
    add_flag("--evalmode-update-lock", "update the lock files from this run")
    baseline = "do not fail on violations listed in this baseline file"
    group.addoption("--evalmode-baseline", metavar="PATH", help=baseline)
    add_flag("--evalmode-update-baseline", "update the baseline file from this run")
    add_flag("--evalmode-all", "guard every test of this run, marked or not")
    add_flag("--evalmode-suggest", "fail no test; report which unmarked tests ran inference and should be marked")
    full_read = "read every tensor each time, even where the kernel reports that its memory was not written"
    add_flag("--evalmode-full-read", full_read)
    group.addoption("--evalmode-html", metavar="PATH", help="write the HTML report")
    rules = "print the rules and their fixes, or the page of one rule, and exit"
    group.addoption("--evalmode-rules", metavar="RULE", nargs="?", const="", help=rules)
    parser.addini("evalmode", "fail, warn (EvalModeWarning), or do nothing: enforce (default), warn or off")
    parser.addini("evalmode_strict", "also apply the strict rules", type="bool", default=False)
    parser.addini("evalmode_baseline", f"{baseline} (from the rootdir)")
    parser.addini("evalmode_marker", "name of the marker", default="inference")
    parser.addini("evalmode_mark", "globs of paths (from the rootdir) whose tests are all guarded", type="args")
    parser.addini("evalmode_allow", "rules that any test may break", type="args")
    parser.addini("evalmode_train", "globs of modules that may be in training mode in any test", type="args")
    parser.addini("evalmode_mutable", "globs of tensors that may change in any test", type="args")


def read_settings(config: pytest.Config) -> Settings:
    """Return the settings of a run, or raise UsageError if an option or ini key has an invalid value."""
    marker = config.getini("evalmode_marker")
    if not marker.isidentifier() or iskeyword(marker):
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is not a valid marker name (use a Python identifier)")
    if marker in _PYTEST_MARKERS:
        raise pytest.UsageError(f"evalmode_marker: {marker!r} is one of pytest's own markers (choose another name)")
    rank = _read_rank()
    mode = _read_mode(config)
    update = config.getoption("evalmode_update_baseline")
    baseline, known = _read_baseline(config, update=update)
    html = _read_output_path(config, "--evalmode-html", rank)
    panels = config.pluginmanager.hasplugin("html") and config.getoption("htmlpath", None)
    if html is not None and find_spec("jinja2") is None:
        raise pytest.UsageError("--evalmode-html requires Jinja2; run: pip install 'pytest-evalmode[html]'")
    if update and mode == "off":
        raise pytest.UsageError("--evalmode-update-baseline: evalmode=off guards no test; use evalmode=enforce")
    return Settings(
        mode=mode,
        strict=_read_strict(config),
        report=_read_output_path(config, "--evalmode-report", rank),
        marker=marker,
        guarded_paths=_read_guarded_paths(config),
        ini_exemptions={name: tuple(config.getini(f"evalmode_{name}")) for name in ("allow", "train", "mutable")},
        root=config.rootpath,
        rank=rank,
        update_lock=config.getoption("evalmode_update_lock"),
        baseline=baseline,
        known=known,
        update_baseline=update,
        suggest=config.getoption("evalmode_suggest"),
        full_read=config.getoption("evalmode_full_read"),
        html=html,
        record_details=bool(config.getoption("evalmode_html") or panels or step_summary_path()),
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
    globs = tuple(map(normpath, config.getini("evalmode_mark")))
    for glob in globs if not is_worker(config) else ():
        is_below = not PurePosixPath(glob).is_absolute() and PurePosixPath(glob).parts[:1] != ("..",)
        if not is_below or (_WILDCARDS.isdisjoint(glob) and not (config.rootpath / glob).exists()):
            raise pytest.UsageError(f"evalmode_mark: {glob!r} is not a file or folder below {config.rootpath}")
    return globs


def _read_output_path(config: pytest.Config, option: str, rank: Rank | None) -> Path | None:
    """Return the path of a file to write; None without the option and in an xdist worker, which writes no files."""
    given = config.getoption(option)
    if given is None or is_worker(config):
        return None
    path: Path = config.invocation_params.dir / given
    if not given or not _is_writable(path):
        raise pytest.UsageError(f"{option}: cannot write to {given!r}")
    # Ranks usually share a file system, and each has a report of its own.
    return path if rank is None else path.with_name(f"{path.stem}.rank{rank.number}{path.suffix}")


def _read_baseline(config: pytest.Config, *, update: bool) -> tuple[Path | None, KnownViolations | None]:
    """Return the path of the baseline and its known violations.

    A worker gets the known violations from its controller, because it may run on a machine with other files.
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
        raise pytest.UsageError(f"{where}: cannot read or write {name!r}")
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
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        folder = next(folder for folder in path.parents if folder.exists())
        return folder.is_dir() and not path.is_dir()
    except (OSError, ValueError):  # a path too long for the file system, a null byte
        return False
