"""The lock file is written atomically, and clear errors say why one is invalid."""

from __future__ import annotations

import json
import os
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pytest_evalmode.lock import lock_file as files
from pytest_evalmode.lock.lock_file import LockError, LockFile, StoredLock, lock_path, read_lock_file, write_lock_file
from pytest_evalmode.lock.sample_store import pack, unpack

ENTRY: dict[str, dict[str, Any]] = {"model": {"net": {"type": "Net", "digest": "0" * 32, "tensors": {}}}}
OTHER: dict[str, dict[str, Any]] = {"outputs": {"accuracy": {"arrays": {}}}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return lock_path(tmp_path / "test_it.py")


def written(path: Path) -> LockFile:
    """Write and read a lock file of two tests, one with samples."""
    write_lock_file(
        LockFile(path, {"test_a": StoredLock(ENTRY), "test_b": StoredLock(OTHER)}), {"test_a": b"first", "test_b": None}
    )
    return read_lock_file(path)


def test_lock_path() -> None:
    assert lock_path(Path("tests/test_it.py")) == Path("tests/__evalmode__/test_it.lock.json")


def test_a_written_file_is_read_back(path: Path) -> None:
    lock_file = written(path)
    assert lock_file.tests["test_a"].entries == ENTRY
    assert lock_file.tests["test_b"] == StoredLock(OTHER)
    assert lock_file.sample_bytes("test_a") == b"first"
    assert lock_file.sample_bytes("test_b") is None
    assert sorted(os.listdir(path.parent)) == ["test_it.0.safetensors", "test_it.lock.json"]


def test_the_file_is_sorted_and_ends_with_a_newline(path: Path) -> None:
    written(path)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_writing_the_same_content_changes_no_file(path: Path) -> None:
    lock_file = written(path)
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}
    write_lock_file(lock_file, {"test_a": b"first"})
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before


def test_new_samples_get_a_new_number_and_the_old_file_is_removed(path: Path) -> None:
    write_lock_file(written(path), {"test_a": b"second"})
    assert read_lock_file(path).sample_bytes("test_a") == b"second"
    assert sorted(os.listdir(path.parent)) == ["test_it.1.safetensors", "test_it.lock.json"]


def test_a_lock_without_tests_removes_the_file(path: Path) -> None:
    written(path)
    write_lock_file(LockFile(path), {})
    assert not path.parent.exists()
    assert read_lock_file(path) == LockFile(path)


def test_other_files_are_kept(path: Path) -> None:
    written(path)
    other = lock_path(path.parent.parent / "test_it.more.py")
    written(other)
    (path.parent / "README").touch()
    write_lock_file(LockFile(path), {})
    assert sorted(os.listdir(path.parent)) == ["README", "test_it.more.0.safetensors", "test_it.more.lock.json"]


class Killed(BaseException):
    """Stands for the end of the process: no `except Exception` catches it."""


@pytest.mark.parametrize("ending", [Killed, OSError])
@pytest.mark.parametrize("step", range(12))
def test_an_interrupted_update_leaves_one_complete_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int, ending: type[BaseException]
) -> None:
    """The update is interrupted at each call that writes, renames or removes a file."""
    written(path)
    steps = iter(range(100))

    def ends_at(owner: Any, name: str, partly: bool = False) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                if partly and isinstance(args[0], Path) and args[0].name.startswith("."):
                    args[0].write_bytes(b"half")
                raise ending
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    ends_at(os, "replace")
    ends_at(os, "fsync")
    ends_at(Path, "unlink")
    ends_at(Path, "open", partly=True)
    new = LockFile(path, {"test_a": StoredLock(OTHER), "test_c": StoredLock(ENTRY)})
    ended = False
    try:
        write_lock_file(new, {"test_a": b"second", "test_c": b"third"})
    except (Killed, OSError, LockError):
        ended = True
    monkeypatch.undo()
    files._parse.cache_clear()
    lock_file = read_lock_file(path)
    if lock_file.tests["test_a"].entries == ENTRY:
        assert ended
        assert lock_file.sample_bytes("test_a") == b"first"
        assert lock_file.tests.keys() == {"test_a", "test_b"}
    else:
        assert lock_file.sample_bytes("test_a") == b"second"
        assert lock_file.sample_bytes("test_c") == b"third"
    write_lock_file(new, {"test_a": b"second", "test_c": b"third"})
    names = sorted(os.listdir(path.parent))
    assert len(names) == 3, "the next update removes leftovers"


def lock_text(tests: dict[str, Any], schema: Any = 1) -> str:
    return json.dumps({"schema": schema, "tests": tests}, indent=1)


GOOD = lock_text({"test_a": ENTRY, "test_b": OTHER})
SAMPLES = {"file": 0, "digest": "0" * 32}
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "invalid or truncated JSON"),
    "cut off": (GOOD[:-20], r":\d+ \(test_b\): invalid or truncated JSON"),
    "cut off in a string": (GOOD[: GOOD.index("accuracy") + 3], r"\(test_b\): invalid or truncated JSON"),
    "conflict markers": (
        GOOD.replace('  "test_b": {', '<<<<<<< HEAD\n  "test_b": {\n=======\n>>>>>>> other'),
        r":\d+ \(test_a\): unresolved merge conflict",
    ),
    "a test twice": (
        GOOD.replace('"test_b"', '"test_a"'),
        "duplicate key 'test_a'",
    ),
    "an entry twice": (
        GOOD.replace('"net": {', '"net": {},\n    "net": {'),
        r"\(test_a\): duplicate key 'net'",
    ),
    "a future version": (lock_text({}, 2), "has schema version 2, written by a newer pytest-evalmode"),
    "no version": (json.dumps({"tests": {}}), "not a lock file with schema version 1"),
    "another version": (lock_text({}, "1"), "not a lock file with schema version 1"),
    "a list": ("[]", "not a lock file with schema version 1"),
    "invalid tests": (lock_text([]), "not a lock file with schema version 1"),  # type: ignore[arg-type]
    "an invalid test": (lock_text({"test_a": 1}), r"\(test_a\): expected the entries of a test, got 1"),
    "an unknown kind": (
        lock_text({"test_a": {"weights": {}}}),
        r"\(test_a\): unknown kind 'weights' \(choose from model, ",
    ),
    "invalid entries": (lock_text({"test_a": {"model": 3}}), r"\(test_a\): model: expected entries by name, got 3"),
    "an invalid entry": (
        lock_text({"test_a": {"model": {"net": 3}}}),
        r"\(test_a\): model 'net': expected an entry, got 3",
    ),
    "bytes": (b"\xff\xfe\x00", "is not a lock file"),
    "deep nesting": ("[" * 100_000, "is not a lock file"),
    "a huge number": ("9" * 100_000, "is not a lock file"),
    "a path for samples": (lock_text({"test_a": {"samples": {**SAMPLES, "file": "../../x"}}}), "invalid samples"),
    "a negative number": (lock_text({"test_a": {"samples": {**SAMPLES, "file": -1}}}), "invalid samples"),
    "a bool instead of a number": (lock_text({"test_a": {"samples": {**SAMPLES, "file": True}}}), "invalid samples"),
    "an extra key in samples": (lock_text({"test_a": {"samples": {**SAMPLES, "path": "x"}}}), "invalid samples"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_and_not_overwritten(path: Path, text: str | bytes, words: str) -> None:
    path.parent.mkdir()
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(data)
    for use in (
        lambda: read_lock_file(path),
        lambda: write_lock_file(LockFile(path, {"test_a": StoredLock(ENTRY)}), {}),
    ):
        with pytest.raises(LockError, match=words) as caught:
            use()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == data
    assert os.listdir(path.parent) == [path.name]


def test_a_huge_file_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    monkeypatch.setattr(files, "_MAX_BYTES", 1000)
    path.write_text(" " * 1001)
    with pytest.raises(LockError, match="is larger than 1000 bytes"):
        read_lock_file(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device")
def test_only_regular_files_are_read(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/zero")
    with pytest.raises(LockError, match="is not a regular file"):
        read_lock_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(LockError, match="is not a regular file"):
        read_lock_file(path)


def test_missing_and_changed_samples_are_errors(path: Path) -> None:
    lock_file = written(path)
    lock_file.sample_path(0).write_bytes(b"other")
    with pytest.raises(LockError, match=r"does not match the digest that test_it\.lock\.json stores for test_a"):
        lock_file.sample_bytes("test_a")
    lock_file.sample_path(0).unlink()
    with pytest.raises(LockError, match="the samples of test_a are missing"):
        lock_file.sample_bytes("test_a")


def header(shape: list[int], end: int, dtype: str = "F32") -> bytes:
    text = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(text)) + text


BOMBS: dict[str, bytes] = {
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a shape larger than the data": header([1 << 20, 1 << 20], 4) + bytes(4),
    "a shape that overflows": header([1 << 62, 1 << 62], 4) + bytes(4),
    "offsets beyond the end": header([1], 1 << 40) + bytes(4),
    "an unknown dtype": header([1], 4, "OBJ") + bytes(4),
    "a pickle": b"cos\nsystem\n(S'false'\ntR.",
    "one byte": b"\0",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_invalid_samples_are_errors_and_allocate_no_memory(data: bytes) -> None:
    with pytest.raises(LockError, match="the samples of test_a cannot be read"):
        unpack(data, "the samples of test_a")


def test_packed_samples_are_unpacked_unchanged() -> None:
    import numpy as np

    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(3, np.int64), "c": np.array([True])}
    unpacked = unpack(pack(arrays), "")
    for name, array in arrays.items():
        assert unpacked[name].dtype == array.dtype
        assert np.array_equal(unpacked[name], array)
    assert pack({}) is None
    assert unpack(None, "") == {}


def test_the_digest_is_of_the_sample_file(path: Path) -> None:
    assert written(path).tests["test_a"].sample_digest == sha256(b"first").hexdigest()[:32]
