"""The lock file of one test file, parsed as untrusted input and written atomically.

It may come from a branch that is not reviewed yet. It is therefore JSON of a limited size, names samples by number and
never by path, and is validated before anything is written.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pytest_evalmode.file_writing import replace_file

SCHEMA = 1
KINDS = ("model", "inputs", "preprocessing", "outputs")
FOLDER = "__evalmode__"
HOW_TO_UPDATE = "run pytest --evalmode-update-lock, review the file that it writes, and commit it"

_MAX_BYTES = 1 << 25
_MAX_SAMPLE_BYTES = 1 << 21
_TEST_LINE = re.compile(r'^  "((?:[^"\\]|\\.)+)": \{$', re.MULTILINE)
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)

Entry = dict[str, Any]


class LockError(ValueError):
    """Raised if a lock file cannot be used, or a method of `evalmode_lock` gets an invalid argument."""

    __module__ = "pytest_evalmode"


@dataclass(frozen=True, slots=True)
class StoredLock:
    """The lock of one test as a lock file stores it: its entries by kind and name, and a reference to its samples."""

    entries: Mapping[str, Mapping[str, Entry]] = field(default_factory=dict)
    sample_number: int | None = None
    """The number in the name of the sample file."""
    sample_digest: str = ""
    """The digest of the sample file."""


@dataclass(frozen=True, slots=True)
class LockFile:
    """The locks of the tests of one file, by node id without the file name."""

    path: Path
    tests: Mapping[str, StoredLock] = field(default_factory=dict)

    def sample_path(self, number: int) -> Path:
        return self.path.with_name(f"{_stem(self.path)}.{number}.safetensors")

    def sample_bytes(self, test: str) -> bytes | None:
        """Return the contents of a test's sample file; None if it has no samples.

        Raises:
            LockError: If the file is missing or was changed.
        """
        lock = self.tests[test]
        if lock.sample_number is None:
            return None
        path = self.sample_path(lock.sample_number)
        data = _read(path, _MAX_SAMPLE_BYTES)
        if data is None:
            raise LockError(f"{path}: the samples of {test} are missing; {_REMEDY}")
        if sha256(data).hexdigest()[:32] != lock.sample_digest:
            mismatch = f"{path} does not match the digest that {self.path.name} stores for {test}"
            raise LockError(f"{mismatch}: it was changed or merged; {_REMEDY}")
        return data


_REMEDY = "restore it from version control, or delete the broken part and run pytest --evalmode-update-lock"


def lock_path(test_file: Path) -> Path:
    """Return the path of the lock file of a test file."""
    return test_file.parent / FOLDER / f"{test_file.stem}.lock.json"


def read_lock_file(path: Path) -> LockFile:
    """Read the lock file at a path; if there is none, return one without tests.

    Raises:
        LockError: If the file cannot be used. The message names it and, if possible, the test and entry.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return LockFile(path)
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}") from None
    return _parse(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=8)
def _parse(path: Path, *_: int) -> LockFile:
    """Parse a lock file; all tests share the result until the file changes."""
    data = _read(path, _MAX_BYTES)
    if data is None:
        return LockFile(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LockError(f"{path} is not a lock file: {error}; {_REMEDY}") from None
    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        where = _test_at(text, conflict.start())
        raise LockError(f"{path}:{line}{where}: unresolved merge conflict; {_REMEDY}")
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        where = _test_at(text, error.pos)
        raise LockError(f"{path}:{error.lineno}{where}: invalid or truncated JSON: {error.msg}; {_REMEDY}") from None
    except _DuplicateKeyError as error:
        where = _test_at(text, _find_second(text, error.key))
        raise LockError(f"{path}{where}: duplicate key {error.key!r}, perhaps from a merge; {_REMEDY}") from None
    except (RecursionError, ValueError) as error:
        raise LockError(f"{path} is not a lock file: {error}; {_REMEDY}") from None
    return LockFile(path, _tests(path, content))


def write_lock_file(file: LockFile, samples: Mapping[str, bytes | None]) -> None:
    """Write a lock file, with new samples for some of its tests; remove it if it has no tests left.

    If this is interrupted, either the old file and its samples or the new file and its samples are complete: new
    samples get an unused number, and the old ones are removed last.
    """
    old = read_lock_file(file.path)  # keeps the old samples until the end, and raises rather than replace a broken file
    used_numbers = {lock.sample_number for lock in (*old.tests.values(), *file.tests.values())}
    tests = dict(file.tests)
    file.path.parent.mkdir(parents=True, exist_ok=True)
    for test, data in samples.items():
        digest = sha256(data).hexdigest()[:32] if data else ""
        stored = old.tests.get(test, StoredLock())
        number = stored.sample_number
        if data is None:
            number = None
        elif number is None or stored.sample_digest != digest or not file.sample_path(number).exists():
            number = next(n for n in range(len(used_numbers) + 1) if n not in used_numbers)
            used_numbers.add(number)
            replace_file(file.sample_path(number), data)
        tests[test] = replace(tests[test], sample_number=number, sample_digest=digest)
    if tests:
        replace_file(file.path, _text(tests).encode("utf-8"))
    else:
        file.path.unlink(missing_ok=True)
    _remove_leftovers(file.path, {lock.sample_number for lock in tests.values()})


def _text(tests: Mapping[str, StoredLock]) -> str:
    content: dict[str, Any] = {}
    for name, lock in tests.items():
        test: dict[str, Any] = {kind: entries for kind, entries in lock.entries.items() if entries}
        if lock.sample_number is not None:
            test["samples"] = {"digest": lock.sample_digest, "file": lock.sample_number}
        content[name] = test
    return json.dumps({"schema": SCHEMA, "tests": content}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _remove_leftovers(path: Path, used_numbers: set[int | None]) -> None:
    """Remove unused samples, and temporary files of an interrupted update."""
    stem = re.escape(_stem(path))
    leftover = re.compile(rf"{stem}\.(\d+)\.safetensors|\.{stem}\.(?:\d+\.safetensors|lock\.json)\.\d+\.tmp")
    for other in path.parent.iterdir():
        match = leftover.fullmatch(other.name)
        if match and (match[1] is None or int(match[1]) not in used_numbers):
            other.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".lock.json")


def _read(path: Path, max_bytes: int) -> bytes | None:
    """Read a regular file of a limited size; return None if it does not exist."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LockError(f"{path} is not a regular file; {_REMEDY}")
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise LockError(f"{path} is larger than {max_bytes} bytes: pytest-evalmode did not write it; {_REMEDY}")
    return data


class _DuplicateKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _DuplicateKeyError(key)
        content[key] = value
    return content


def _find_second(text: str, key: str) -> int:
    """Return the position of a key's second occurrence at the same depth."""
    seen: set[str] = set()
    for line in re.finditer(rf"^( *){re.escape(json.dumps(key, ensure_ascii=False))}:", text, re.MULTILINE):
        if line[1] in seen:
            return line.start()
        seen.add(line[1])
    return 0


def _test_at(text: str, position: int) -> str:
    """Return the test that a position belongs to, for an error message."""
    before = [match[1] for match in _TEST_LINE.finditer(text, 0, position) if match.start() <= position]
    return f" ({before[-1]})" if before else ""


def _tests(path: Path, content: Any) -> dict[str, StoredLock]:
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise LockError(
            f"{path} has schema version {schema}, written by a newer pytest-evalmode; this version reads {SCHEMA}: "
            "upgrade pytest-evalmode"
        )
    if schema != SCHEMA or not isinstance(content.get("tests"), dict):
        raise LockError(f"{path} is not a lock file with schema version {SCHEMA}; {_REMEDY}")
    return {name: _stored_lock(path, name, value) for name, value in content["tests"].items()}


def _stored_lock(path: Path, name: str, value: Any) -> StoredLock:
    if not isinstance(value, dict):
        raise LockError(f"{path} ({name}): expected the entries of a test, got {value!r:.40}; {_REMEDY}")
    samples = value.get("samples")
    if samples is not None and not _is_sample_reference(samples):
        raise LockError(f"{path} ({name}): invalid samples: {samples!r:.80}; {_REMEDY}")
    for kind, entries in value.items():
        if kind == "samples":
            continue
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise LockError(f"{path} ({name}): unknown kind {kind!r:.80} (choose from {known}); {_REMEDY}")
        if not isinstance(entries, dict):
            raise LockError(f"{path} ({name}): {kind}: expected entries by name, got {entries!r:.40}; {_REMEDY}")
        for entry, content in entries.items():
            if not isinstance(content, dict):
                raise LockError(f"{path} ({name}): {kind} {entry!r}: expected an entry, got {content!r:.40}; {_REMEDY}")
    entries = {kind: each for kind, each in value.items() if kind != "samples"}
    if samples is None:
        return StoredLock(entries)
    return StoredLock(entries, samples["file"], samples["digest"])


def _is_sample_reference(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"file", "digest"}:
        return False
    number = value["file"]
    return type(number) is int and 0 <= number < 1 << 20 and isinstance(value["digest"], str)
