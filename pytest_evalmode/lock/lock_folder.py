"""Writes to a folder of lock files: whole files, one process at a time, and nothing is lost if it is interrupted."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_evalmode.file_writing import replace_file
from pytest_evalmode.lock.lock_file import (
    FOLDER,
    MAX_SAMPLE_BYTES,
    MODELS,
    Entry,
    LockError,
    NewerVersionError,
    StoredLock,
    check_folder,
    digest_of,
    encode,
    model_path,
    read_lock,
    read_samples,
    sample_path,
    temporary_path,
)
from pytest_evalmode.lock.sample_store import merge_samples

try:
    import fcntl
except ImportError:  # Windows: each file is still replaced as a whole
    fcntl = None  # type: ignore[assignment]

_REFERENCE = re.compile(rb'"record": "([0-9a-f]{32})"')
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@dataclass(frozen=True, slots=True)
class NewLock:
    """What an update writes for one test."""

    test: str
    entries: Mapping[str, Mapping[str, Entry]]
    """The new entries; those of other names are kept."""
    samples: bytes | None = None
    """The samples of the new entries, as a safetensors file."""
    models: Mapping[str, tuple[Entry, bytes | None]] | None = None
    """The entries and samples of the models, by the digests of the entries."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time write to the lock files in a folder."""
    check_folder(folder / "x" / "x")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        with suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def write_lock(path: Path, new: NewLock, unused: Collection[tuple[str, str]] = ()) -> None:
    """Add the new entries of a test to its file, without those that are `unused`; call it in `exclusive()`.

    Wherever this is interrupted, there is either the old file with its samples, or the new one with its own: the new
    samples have a temporary name until the new file is in place. A file that cannot be read is replaced, but not that
    of a newer version.
    """
    for record, (entry, values) in (new.models or {}).items():
        _replace(model_path(path, record), encode(entry), values)
    stored, data = StoredLock(new.test), None
    try:
        stored = read_lock(path, new.test) or stored
        data = read_samples(path, stored.samples)
    except NewerVersionError:
        raise
    except LockError:
        pass
    entries, kept = dict[str, dict[str, Entry]](), set[tuple[str, str]]()
    for kind in {*stored.entries, *new.entries}:
        old = {name: each for name, each in stored.entries.get(kind, {}).items() if (kind, name) not in unused}
        kept |= {(kind, name) for name in old.keys() - new.entries.get(kind, {}).keys()}
        entries[kind] = {**old, **new.entries.get(kind, {})}
    if not any(entries.values()):
        path.unlink(missing_ok=True)
        sample_path(path).unlink(missing_ok=True)
        return
    samples = merge_samples(data, new.samples, kept)
    if samples is not None and len(samples) > MAX_SAMPLE_BYTES:
        raise LockError(f"{path}: {len(samples)} bytes of samples are too many: lock less in one test")
    content: Entry = {"test": stored.test, **{kind: each for kind, each in entries.items() if each}}
    _replace(path, encode({**content, **({"samples": digest_of(samples)} if samples else {})}), samples)


def _replace(path: Path, data: bytes, samples: bytes | None) -> None:
    """Replace a file and its samples; files that are not changed are not written."""
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = sample_path(path)
    if temporary_path(target).exists():
        _complete(temporary_path(target))
    if samples is not None and not (target.is_file() and target.read_bytes() == samples):
        replace_file(temporary_path(target), samples)
    if not (path.is_file() and path.read_bytes() == data):
        replace_file(path, data)
    if samples is None:
        target.unlink(missing_ok=True)
    elif temporary_path(target).exists():
        temporary_path(target).replace(target)


def remove_leftovers(folder: Path) -> None:
    """Remove what no lock file needs: models, samples, temporary files, empty folders; call it in `exclusive()`."""
    files = [path for path in folder.glob("*/*") if not path.parent.is_symlink()]
    locks = [path for path in files if path.name.endswith(".lock.json") and path.parent.name != MODELS]
    needed = {match.decode() for path in locks for match in _REFERENCE.findall(path.read_bytes())}
    for path in files:
        stem = path.name.partition(".")[0]
        is_model = path.parent.name == MODELS and re.fullmatch(r"[0-9a-f]{32}", stem) and stem not in needed
        is_alone = path.suffix == ".safetensors" and not path.with_name(f"{path.stem}.lock.json").exists()
        if path.name.startswith(".") and path.suffix == ".new":
            _complete(path)
        elif is_model or is_alone or _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for empty in [*(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()), folder]:
        with suppress(OSError):
            empty.rmdir()


def _complete(path: Path) -> None:
    """Complete an update that was interrupted after its lock file was in place; otherwise remove its samples."""
    target = path.with_name(path.name.removeprefix(".").removesuffix(".new"))
    lock = target.with_name(f"{target.stem}.lock.json")
    if lock.is_file() and digest_of(path.read_bytes()).encode() in lock.read_bytes():
        path.replace(target)
    else:
        path.unlink()


def find_ignored(folder: Path) -> list[str]:
    """Return the files of a folder that git ignores, so that a commit would miss them."""
    paths = [str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_file()]
    command = ["git", "check-ignore", "--stdin", "-z"]
    try:
        result = subprocess.run(
            command, cwd=folder, input="\0".join(paths), capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [f"{FOLDER}/{name}" for name in result.stdout.split("\0") if name]
