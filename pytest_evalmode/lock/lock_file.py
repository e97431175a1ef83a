"""The lock file of one test and the records of models, parsed as untrusted input.

They may come from a branch that is not reviewed yet. They are therefore JSON of a limited size that names no path, in
regular files of folders that are not symlinks.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

SCHEMA = 3
KINDS = ("model", "inputs", "preprocessing", "outputs")
FOLDER = "__evalmode__"
MODELS = "models"
HOW_TO_UPDATE = "run pytest --evalmode-update-lock, review the file that it writes, and commit it"

MAX_BYTES = 1 << 25
MAX_SAMPLE_BYTES = 1 << 21
_REMEDY = "restore it from version control, or run pytest --evalmode-update-lock"
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_RECORD = re.compile(r"[0-9a-f]{32}")

Entry = dict[str, Any]


class LockError(ValueError):
    """Raised if a lock file cannot be used, or a method of `evalmode_lock` gets an invalid argument."""

    __module__ = "pytest_evalmode"

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class NewerVersionError(LockError):
    """Raised if a newer version wrote a file, which an update must therefore not replace."""

    __module__ = "pytest_evalmode"


@dataclass(frozen=True, slots=True)
class StoredLock:
    """The lock of one test as its file stores it: its entries by kind and name, and the digest of its samples."""

    test: str
    entries: Mapping[str, Mapping[str, Entry]] = field(default_factory=dict)
    samples: str = ""


def escape(text: str) -> str:
    """Escape characters of untrusted text that would change the output of a terminal."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def lock_path(test_file: Path, test: str) -> Path:
    """Return the path of a test's lock file: `test` is its node id without the file."""
    name = _UNSAFE.sub("_", test).strip("_.")[:100]
    if name != test:
        name = f"{name}-{digest_of(test.encode())[:8]}"
    return test_file.parent / FOLDER / test_file.stem / f"{name}.lock.json"


def model_path(path: Path, record: object) -> Path:
    """Return the path of a model's record, which is named by its digest; `path` is that of a test's lock file."""
    if not isinstance(record, str) or not _RECORD.fullmatch(record):
        raise LockError(f"{path}: invalid model record {record!r:.80}; {_REMEDY}")
    return path.parents[1] / MODELS / f"{record}.lock.json"


def sample_path(path: Path) -> Path:
    """Return the path of the samples that belong to a lock file."""
    return path.with_name(path.name.removesuffix(".lock.json") + ".safetensors")


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()[:32]


def encode(content: Entry) -> bytes:
    """Return the contents of a file; raise LockError if it would be too large to be read again."""
    text = json.dumps({"schema": SCHEMA, **content}, indent=1, sort_keys=True, ensure_ascii=False)
    data = f"{text}\n".encode("utf-8", "backslashreplace")
    if len(data) > MAX_BYTES:
        raise LockError(f"{len(data)} bytes are too many for one lock file: lock less in one test, or split the test")
    return data


def read_lock(path: Path, test: str | None = None) -> StoredLock | None:
    """Return the lock in a file, of any test or of a given one; None if there is no file.

    Raises:
        LockError: If the file cannot be used. The message names it and, if possible, the entry.
    """
    content = _read_json(path)
    if content is None:
        return None
    entries = {key: value for key, value in content.items() if key not in ("schema", "test", "samples")}
    owner, samples = content.get("test"), content.get("samples", "")
    if not isinstance(owner, str) or not isinstance(samples, str):
        raise LockError(f"{path}: invalid test {owner!r:.80} or samples {samples!r:.80}; {_REMEDY}")
    if test not in (None, owner):
        raise LockError(f"{path} is the lock file of another test, {owner:.80}; {_REMEDY}")
    for kind, named in entries.items():
        if kind not in KINDS:
            raise LockError(f"{path}: unknown kind {kind!r:.80} (choose from {', '.join(KINDS)}); {_REMEDY}")
        if not isinstance(named, dict):
            raise LockError(f"{path}: {kind}: expected entries by name, got {named!r:.40}; {_REMEDY}")
        for name, entry in named.items():
            if not isinstance(entry, dict):
                raise LockError(f"{path}: {kind} {name!r:.80}: expected an entry, got {entry!r:.40}; {_REMEDY}")
    return StoredLock(owner, entries, samples)


def read_model(path: Path) -> Entry:
    """Return the entry of a model, from the file that is named by its digest."""
    content = _read_json(path)
    if content is None:
        raise LockError(f"{path} is missing; {_REMEDY}")
    entry: Entry = {key: value for key, value in content.items() if key != "schema"}
    if f"{digest_of(encode(entry))}.lock.json" != path.name:
        raise LockError(f"{path} was changed: its name is not the digest of its contents; {_REMEDY}")
    return entry


def read_samples(path: Path, digest: str) -> bytes | None:
    """Return the samples that belong to a lock file; None if the digest is empty, because it has none.

    An interrupted update may have left them under their temporary name.

    Raises:
        LockError: If they are missing, or not those of this file.
    """
    if digest == "":
        return None
    path = sample_path(path)
    data = read_file(path, MAX_SAMPLE_BYTES)
    for each in (data, read_file(temporary_path(path), MAX_SAMPLE_BYTES)):
        if each is not None and digest_of(each) == digest:
            return each
    if data is None:
        raise LockError(f"the samples are missing: commit {path}, and check that git does not ignore it")
    if data.startswith(b"version https://git-lfs"):
        raise LockError(f"the samples are a pointer of Git LFS: run git lfs pull ({path})")
    raise LockError(f"the samples in {path} are cut off, changed or from another commit; {_REMEDY}")


def temporary_path(path: Path) -> Path:
    """Return where new samples are until the lock file that names them is in place."""
    return path.with_name(f".{path.name}.new")


def check_folder(path: Path) -> None:
    """Raise LockError if the folder of a file, or the one above it, is a symlink."""
    for folder in path.parents[:2]:
        if folder.is_symlink():
            raise LockError(f"{folder} is a symlink, which is not followed; {_REMEDY}")


def read_file(path: Path, max_bytes: int) -> bytes | None:
    """Read a regular file of a limited size; return None if it does not exist."""
    check_folder(path)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise LockError(f"{path} is not a regular file; {_REMEDY}")
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise LockError(f"{path} is larger than {max_bytes} bytes: pytest-evalmode did not write it; {_REMEDY}")
    return data


def _read_json(path: Path) -> Entry | None:
    data = read_file(path, MAX_BYTES)
    if data is None:
        return None
    try:
        content: Entry = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        conflict = _CONFLICT.search(error.doc)
        if conflict:
            line = error.doc.count("\n", 0, conflict.start()) + 1
            raise LockError(f"{path}:{line}: unresolved merge conflict; {_REMEDY}") from None
        raise LockError(f"{path}:{error.lineno}: invalid or truncated JSON: {error.msg}; {_REMEDY}") from None
    except LockError as error:
        raise LockError(f"{path}: {error}; {_REMEDY}") from None
    except (RecursionError, ValueError) as error:
        raise LockError(f"{path} is not a lock file: {error}; {_REMEDY}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int or schema < SCHEMA:
        raise LockError(f"{path} is not a lock file with schema version {SCHEMA}: run pytest --evalmode-update-lock")
    if schema > SCHEMA:
        raise NewerVersionError(
            f"{path} has schema version {schema}, written by a newer pytest-evalmode; this version reads {SCHEMA}: "
            "upgrade pytest-evalmode"
        )
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise LockError(f"duplicate key {key!r:.80}, perhaps from a merge")
        content[key] = value
    return content
