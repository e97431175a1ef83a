"""The lock file of one test file: read with suspicion, written whole or not at all.

It may come from a branch that nobody has reviewed.  So it is JSON of a limited size, in which samples are named by
number, never by path; and whatever is wrong with it is told before anything is written.
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

_MOST_BYTES = 1 << 25
_MOST_SAMPLE_BYTES = 1 << 21
_TEST_LINE = re.compile(r'^  "((?:[^"\\]|\\.)+)": \{$', re.MULTILINE)
_CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)

Entry = dict[str, Any]


class LockError(ValueError):
    """A lock file that cannot be used, or a use of the lock that makes no sense."""

    __module__ = "pytest_evalmode"


@dataclass(frozen=True, slots=True)
class StoredLock:
    """What is locked for one test: its entries by kind and name, and which file holds its samples."""

    entries: Mapping[str, Mapping[str, Entry]] = field(default_factory=dict)
    sample_number: int | None = None
    """The number in the name of the file."""
    sample_digest: str = ""
    """Of that file."""


@dataclass(frozen=True, slots=True)
class LockFile:
    """All that is locked for the tests of one file, by what follows the file in their node ids."""

    path: Path
    tests: Mapping[str, StoredLock] = field(default_factory=dict)

    def sample_path(self, number: int) -> Path:
        return self.path.with_name(f"{_stem(self.path)}.{number}.safetensors")

    def sample_bytes(self, test: str) -> bytes | None:
        """The samples of a test, as they were written.  Raises LockError if they are gone, or others."""
        lock = self.tests[test]
        if lock.sample_number is None:
            return None
        path = self.sample_path(lock.sample_number)
        data = _read(path, _MOST_SAMPLE_BYTES)
        if data is None:
            raise LockError(f"{path}, the samples of {test}, is missing; {_REMEDY}")
        if sha256(data).hexdigest()[:32] != lock.sample_digest:
            raise LockError(f"{path} is not what {self.path.name} says of {test}: it was merged or changed; {_REMEDY}")
        return data


_REMEDY = "restore it from version control, or delete what is broken and run pytest --evalmode-update-lock"


def lock_path(test_file: Path) -> Path:
    """Where the lock of a test file lies."""
    return test_file.parent / FOLDER / f"{test_file.stem}.lock.json"


def read_lock_file(path: Path) -> LockFile:
    """The lock file at a path; one without tests if there is none.

    Raises LockError, which names the file and, where it can be told, the test and entry, if it cannot be used.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return LockFile(path)
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}") from None
    return _parsed(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=8)
def _parsed(path: Path, *_: int) -> LockFile:
    """What a lock file says; each is read once for all tests, for as long as it stays as it is."""
    data = _read(path, _MOST_BYTES)
    if data is None:
        return LockFile(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LockError(f"{path} is no lock file: {error}; {_REMEDY}") from None
    conflict = _CONFLICT.search(text)
    if conflict:
        line = text.count("\n", 0, conflict.start()) + 1
        where = _near(text, conflict.start())
        raise LockError(f"{path}:{line}{where}: a merge left its conflict markers here; {_REMEDY}")
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        where = _near(text, error.pos)
        raise LockError(f"{path}:{error.lineno}{where}: broken or cut off: {error.msg}; {_REMEDY}") from None
    except _DuplicateError as error:
        where = _near(text, _second(text, error.key))
        raise LockError(f"{path}{where}: {error.key!r} stands there twice, as after a merge; {_REMEDY}") from None
    except (RecursionError, ValueError) as error:
        raise LockError(f"{path} is no lock file: {error}; {_REMEDY}") from None
    return LockFile(path, _tests(path, content))


def write_lock_file(file: LockFile, samples: Mapping[str, bytes | None]) -> None:
    """Write a lock file, with new samples for some of its tests; or, where nothing is locked any more, remove it.

    Whenever this is interrupted, the old file stands with its samples, or the new one does: new samples get a number
    that is not in use, and the old ones are removed last.
    """
    old = read_lock_file(file.path)  # its samples are to outlive this, and what is broken is not written over
    taken = {lock.sample_number for lock in (*old.tests.values(), *file.tests.values())}
    tests = dict(file.tests)
    file.path.parent.mkdir(parents=True, exist_ok=True)
    for test, data in samples.items():
        digest = sha256(data).hexdigest()[:32] if data else ""
        before = old.tests.get(test, StoredLock())
        number = before.sample_number
        if data is None:
            number = None
        elif number is None or before.sample_digest != digest or not file.sample_path(number).exists():
            number = next(n for n in range(len(taken) + 1) if n not in taken)
            taken.add(number)
            replace_file(file.sample_path(number), data)
        tests[test] = replace(tests[test], sample_number=number, sample_digest=digest)
    if tests:
        replace_file(file.path, _text(tests).encode("utf-8"))
    else:
        file.path.unlink(missing_ok=True)
    _tidy(file.path, {lock.sample_number for lock in tests.values()})


def _text(tests: Mapping[str, StoredLock]) -> str:
    content: dict[str, Any] = {}
    for name, lock in tests.items():
        found: dict[str, Any] = {kind: entries for kind, entries in lock.entries.items() if entries}
        if lock.sample_number is not None:
            found["samples"] = {"digest": lock.sample_digest, "file": lock.sample_number}
        content[name] = found
    return json.dumps({"schema": SCHEMA, "tests": content}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _tidy(path: Path, used: set[int | None]) -> None:
    """Remove samples that nothing refers to any more, and what an interrupted update left."""
    stem = re.escape(_stem(path))
    left = re.compile(rf"{stem}\.(\d+)\.safetensors|\.{stem}\.(?:\d+\.safetensors|lock\.json)\.\d+\.tmp")
    for other in path.parent.iterdir():
        found = left.fullmatch(other.name)
        if found and (found[1] is None or int(found[1]) not in used):
            other.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".lock.json")


def _read(path: Path, most: int) -> bytes | None:
    """A file that is one, of no more than so many bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LockError(f"{path} is no regular file; {_REMEDY}")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LockError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise LockError(f"{path} has more than {most} bytes: it was not written by pytest-evalmode; {_REMEDY}")
    return data


class _DuplicateError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateError(key)
        found[key] = value
    return found


def _second(text: str, key: str) -> int:
    """Where a key stands for the second time, at the same depth as before."""
    seen: set[str] = set()
    for line in re.finditer(rf"^( *){re.escape(json.dumps(key, ensure_ascii=False))}:", text, re.MULTILINE):
        if line[1] in seen:
            return line.start()
        seen.add(line[1])
    return 0


def _near(text: str, position: int) -> str:
    """The test in whose lock a position lies, for an error."""
    before = [match[1] for match in _TEST_LINE.finditer(text, 0, position) if match.start() <= position]
    return f" ({before[-1]})" if before else ""


def _tests(path: Path, content: Any) -> dict[str, StoredLock]:
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise LockError(
            f"{path} is of version {schema}, written by a newer pytest-evalmode; this one reads version {SCHEMA}: "
            "upgrade pytest-evalmode"
        )
    if schema != SCHEMA or not isinstance(content.get("tests"), dict):
        raise LockError(f"{path} is no lock file of version {SCHEMA}; {_REMEDY}")
    return {name: _test(path, name, value) for name, value in content["tests"].items()}


def _test(path: Path, name: str, value: Any) -> StoredLock:
    if not isinstance(value, dict):
        raise LockError(f"{path} ({name}): {value!r:.40} is no lock of a test; {_REMEDY}")
    samples = value.get("samples")
    if samples is not None and not _is_sample(samples):
        raise LockError(f"{path} ({name}): samples: {samples!r:.80} names no samples; {_REMEDY}")
    for kind, entries in value.items():
        if kind == "samples":
            continue
        if kind not in KINDS:
            raise LockError(f"{path} ({name}): {kind!r:.80} is nothing that can be locked; {_REMEDY}")
        if not isinstance(entries, dict):
            raise LockError(f"{path} ({name}): {kind}: {entries!r:.40} holds no entries; {_REMEDY}")
        for entry, content in entries.items():
            if not isinstance(content, dict):
                raise LockError(f"{path} ({name}): {kind} {entry!r}: {content!r:.40} is no entry; {_REMEDY}")
    entries = {kind: found for kind, found in value.items() if kind != "samples"}
    if samples is None:
        return StoredLock(entries)
    return StoredLock(entries, samples["file"], samples["digest"])


def _is_sample(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"file", "digest"}:
        return False
    number = value["file"]
    return type(number) is int and 0 <= number < 1 << 20 and isinstance(value["digest"], str)
