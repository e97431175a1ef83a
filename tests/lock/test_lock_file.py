"""Lock files are written atomically, and clear errors say why one is invalid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_evalmode.lock import lock_file as files
from pytest_evalmode.lock.lock_file import (
    FOLDER,
    LockError,
    StoredLock,
    digest_of,
    encode,
    lock_path,
    model_path,
    read_lock,
    read_model,
    read_samples,
    sample_path,
    temporary_path,
)
from pytest_evalmode.lock.lock_folder import NewLock, exclusive, remove_leftovers, write_lock
from pytest_evalmode.lock.sample_store import key_of, pack, unpack

RECORD: dict[str, Any] = {"type": "Net", "digest": "0" * 32, "tensors": {}}
KEY = digest_of(encode(RECORD))
ENTRY: dict[str, dict[str, Any]] = {"model": {"net": {"type": "Net", "record": KEY, "tensors": 0}}}
OTHER: dict[str, dict[str, Any]] = {"outputs": {"accuracy": {"arrays": {}}}}
BOTH = {**ENTRY, **OTHER}


def samples(value: float, name: str = "accuracy") -> bytes:
    data = pack({key_of("outputs", name, "batch"): np.full(3, value)})
    assert data is not None
    return data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return lock_path(tmp_path / "test_it.py", "test_a")


def write(path: Path, *news: NewLock) -> None:
    folder = path.parents[1]
    with exclusive(folder):
        for new in news:
            write_lock(lock_path(folder.parent / "test_it.py", new.test), new)
        remove_leftovers(folder)


FIRST = NewLock("test_a", ENTRY, samples(1.0), {KEY: (RECORD, b"values")})


def names(path: Path) -> list[str]:
    folder = path.parents[1]
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_lock_path() -> None:
    folder = Path("tests/__evalmode__/test_it")
    assert lock_path(Path("tests/test_it.py"), "test_a") == folder / "test_a.lock.json"
    unsafe = [
        lock_path(Path("tests/test_it.py"), f"TestIt::test_a[{each}]") for each in ("a/b", "a:b", "../..", "é" * 300)
    ]
    assert len(set(unsafe)) == 4
    assert all(each.parent == folder and len(each.name) < 150 and each.name.isascii() for each in unsafe)


def test_a_written_file_is_read_back(path: Path) -> None:
    write(path, FIRST)
    lock = read_lock(path, "test_a")
    assert lock is not None
    assert (lock.entries, lock.test) == (ENTRY, "test_a")
    assert read_samples(path, lock.samples) == samples(1.0)
    assert read_model(model_path(path, KEY)) == RECORD
    assert read_samples(model_path(path, KEY), digest_of(b"values")) == b"values"
    assert names(path) == [f"models/{KEY}.lock.json", f"models/{KEY}.safetensors", "test_it/test_a.lock.json", SAMPLES]


SAMPLES = "test_it/test_a.safetensors"


def test_the_file_is_sorted_and_ends_with_a_newline(path: Path) -> None:
    write(path, FIRST)
    text = path.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_entries_that_are_not_new_are_kept_with_their_samples(path: Path) -> None:
    write(path, NewLock("test_a", BOTH, samples(1.0)))
    more: dict[str, dict[str, Any]] = {"outputs": {"loss": {"arrays": {}}}}
    write(path, NewLock("test_a", more, samples(2.0, "loss")))
    lock = read_lock(path)
    assert lock is not None
    assert lock.entries["outputs"].keys() == {"accuracy", "loss"}
    stored = unpack(read_samples(path, lock.samples))
    assert {key: float(values[0]) for key, values in stored.items()} == {
        key_of("outputs", "accuracy", "batch"): 1.0,
        key_of("outputs", "loss", "batch"): 2.0,
    }
    with exclusive(path.parents[1]):
        write_lock(path, NewLock("test_a", {}), {("outputs", "accuracy"), ("model", "net")})
    lock = read_lock(path)
    assert lock is not None
    assert unpack(read_samples(path, lock.samples)).keys() == {key_of("outputs", "loss", "batch")}


def test_a_lock_without_entries_removes_its_files_and_the_model_that_no_other_needs(path: Path) -> None:
    write(path, FIRST, NewLock("test_b", ENTRY))
    with exclusive(path.parents[1]):
        write_lock(path, NewLock("test_a", {}), {("model", "net")})
        remove_leftovers(path.parents[1])
    assert names(path) == [f"models/{KEY}.lock.json", f"models/{KEY}.safetensors", "test_it/test_b.lock.json"]
    with exclusive(path.parents[1]):
        write_lock(path.with_name("test_b.lock.json"), NewLock("test_b", {}), {("model", "net")})
        remove_leftovers(path.parents[1])
    assert not path.parents[1].exists()


def test_other_files_are_kept(path: Path) -> None:
    write(path, FIRST)
    (path.parents[1] / "README").touch()
    write(path, FIRST)
    assert "README" in names(path)


@pytest.mark.parametrize("step", range(16))
def test_an_update_that_fails_leaves_a_lock_with_its_own_samples(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The disk is full at each call that writes, renames or removes a file."""
    write(path, FIRST)
    steps = iter(range(100))

    def ends_at(owner: Any, name: str, partly: bool = False) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == step:
                if partly and isinstance(args[0], Path) and args[0].name.startswith("."):
                    args[0].write_bytes(b"half")
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    ends_at(os, "replace")
    ends_at(os, "fsync")
    ends_at(Path, "replace")
    ends_at(Path, "unlink")
    ends_at(Path, "open", partly=True)
    ended = False
    try:
        write(path, *NEWS)
    except (OSError, LockError):
        ended = True
    monkeypatch.undo()
    check_interrupted(path, ended)


def test_samples_that_an_interrupted_update_left_do_not_replace_the_right_ones(path: Path) -> None:
    write(path, FIRST)
    temporary_path(sample_path(path)).write_bytes(samples(9.0))
    with exclusive(path.parents[1]):
        write_lock(path, FIRST)
    check_samples(path, 1.0)


def test_an_update_after_one_that_was_interrupted_can_be_interrupted_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock file of the first is in place, but its samples still have their temporary name."""
    write(path, FIRST)
    old = sample_path(path).read_bytes()
    write(path, NEWS[0])
    sample_path(path).replace(temporary_path(sample_path(path)))
    sample_path(path).write_bytes(old)
    check_samples(path, 2.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    replace, count = os.replace, iter(range(100))
    monkeypatch.setattr(os, "replace", lambda *args: full() if next(count) else replace(*args))
    with pytest.raises(OSError, match="No space"), exclusive(path.parents[1]):
        write_lock(path, NewLock("test_a", {"outputs": {"accuracy": {"arrays": {"x": {}}}}}, samples(7.0)))
    check_samples(path, 2.0)


def check_samples(path: Path, value: float) -> None:
    lock = read_lock(path)
    assert lock is not None
    assert read_samples(path, lock.samples) == samples(value)


def update_killed_before(path: Path, step: int) -> bool:
    """Update in a process that is killed before a file operation; return whether there was this operation."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    steps = iter(range(100))

    def audit(event: str, args: Any) -> None:
        is_file = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if is_file and FOLDER in str(args[0]) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    write(path, *NEWS)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_an_update_that_is_killed_leaves_a_lock_with_its_own_samples(path: Path) -> None:
    """The process is killed before each file that it opens, renames or removes."""
    for step in range(100):
        shutil.rmtree(path.parents[1], ignore_errors=True)
        write(path, FIRST)
        ended = update_killed_before(path, step)
        check_interrupted(path, ended)
        if not ended:
            break
    assert step > 20


NEWS = [NewLock("test_a", BOTH, samples(2.0)), NewLock("test_c", OTHER, samples(3.0))]


def check_interrupted(path: Path, ended: bool) -> None:
    """Check that the lock file is the old or the new one, and that the next updates repair the rest."""
    lock = read_lock(path)
    assert lock is not None
    if lock.entries == ENTRY:
        assert ended
        assert read_samples(path, lock.samples) == samples(1.0)
    else:
        assert read_samples(path, lock.samples) == samples(2.0)
    assert read_model(model_path(path, KEY)) == RECORD
    write(path, NewLock("test_d", OTHER))
    lock = read_lock(path)
    assert lock is not None
    assert read_samples(path, lock.samples) in (samples(1.0), samples(2.0)), "an update of another test loses nothing"
    write(path, *NEWS)
    assert not [name for name in names(path) if "/." in name], "the next update removes leftovers"
    assert len(names(path)) == 7


def lock_text(content: dict[str, Any], schema: Any = 3) -> str:
    return json.dumps({"schema": schema, "test": "test_a", **content}, indent=1)


GOOD = lock_text(BOTH)
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "invalid or truncated JSON"),
    "cut off": (GOOD[:-20], r":\d+: invalid or truncated JSON"),
    "conflict markers": (
        GOOD.replace(' "outputs"', '<<<<<<< HEAD\n "outputs"\n=======\n>>>>>>> other'),
        r":\d+: unresolved merge conflict",
    ),
    "an entry twice": (GOOD.replace('"net": {', '"net": {},\n    "net": {'), "duplicate key 'net'"),
    "a future version": (lock_text({}, 4), "has schema version 4, written by a newer pytest-evalmode"),
    "an earlier version": (
        lock_text({}, 1),
        "not a lock file with schema version 3: run pytest --evalmode-update-lock",
    ),
    "no version": (json.dumps({"test": "test_a"}), "not a lock file with schema version 3"),
    "a version that is text": (lock_text({}, "3"), "not a lock file with schema version 3"),
    "a version that is a bool": (lock_text({}, True), "not a lock file with schema version 3"),
    "a list": ("[]", "not a lock file with schema version 3"),
    "no test": (lock_text({"test": 1}), "invalid test 1"),
    "another test": (lock_text({"test": "test_b"}), "is the lock file of another test, test_b"),
    "an unknown kind": (lock_text({"weights": {}}), r"unknown kind 'weights' \(choose from model, "),
    "invalid entries": (lock_text({"model": 3}), "model: expected entries by name, got 3"),
    "an invalid entry": (lock_text({"model": {"net": 3}}), "model 'net': expected an entry, got 3"),
    "invalid samples": (lock_text({"samples": {"file": "../../x"}}), "invalid test 'test_a' or samples"),
    "control characters": (lock_text({"test": "\x1b[2J\u202e"}), r"another test, \\x1b\[2J\\u202e"),
    "bytes": (b"\xff\xfe\x00", "is not a lock file"),
    "deep nesting": ("[" * 100_000, "is not a lock file"),
    "a huge number": ("9" * 100_000, "is not a lock file"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_an_error_that_an_update_heals(path: Path, text: str | bytes, words: str) -> None:
    path.parent.mkdir(parents=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(data)
    with pytest.raises(LockError, match=words) as caught:
        read_lock(path, "test_a")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data
    if "newer" in words:
        with pytest.raises(LockError, match="newer"):
            write(path, FIRST)
        assert path.read_bytes() == data
        return
    write(path, FIRST)
    lock = read_lock(path, "test_a")
    assert lock is not None
    assert lock.entries == ENTRY


@pytest.mark.parametrize("record", ["../../x", "", None, 3, "0" * 31, "0" * 32 + "\n"])
def test_a_record_of_a_model_is_a_digest_and_no_path(path: Path, record: object) -> None:
    with pytest.raises(LockError, match="invalid model record"):
        model_path(path, record)


def test_a_record_that_was_changed_is_an_error(path: Path) -> None:
    write(path, FIRST)
    model_path(path, KEY).write_bytes(encode({**RECORD, "type": "Other"}))
    with pytest.raises(LockError, match="was changed: its name is not the digest of its contents"):
        read_model(model_path(path, KEY))


def test_a_file_that_would_be_too_large_is_refused_while_it_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(LockError, match="bytes are too many for one lock file: lock less in one test"):
        write(path, NewLock("test_a", {"outputs": {f"x{i}": {"arrays": {}} for i in range(100)}}))
    assert read_lock(path) is None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" " * 1001)
    with pytest.raises(LockError, match="is larger than 1000 bytes"):
        read_lock(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device")
def test_only_regular_files_are_read(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/zero")
    with pytest.raises(LockError, match="is not a regular file"):
        read_lock(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(LockError, match="is not a regular file"):
        read_lock(path)


def test_missing_and_changed_samples_are_errors(path: Path) -> None:
    write(path, FIRST)
    lock = read_lock(path)
    assert lock == StoredLock("test_a", ENTRY, digest_of(samples(1.0)))
    sample_path(path).write_bytes(b"other")
    with pytest.raises(LockError, match="are cut off, changed or from another commit"):
        read_samples(path, lock.samples)
    sample_path(path).unlink()
    with pytest.raises(LockError, match="the samples are missing"):
        read_samples(path, lock.samples)


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
    with pytest.raises(LockError, match="the samples cannot be read"):
        unpack(data)


def test_packed_samples_are_unpacked_unchanged() -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array(3, np.int64), "c": np.array([True])}
    unpacked = unpack(pack(arrays))
    for name, array in arrays.items():
        assert unpacked[name].dtype == array.dtype
        assert np.array_equal(unpacked[name], array)
    assert pack({}) is None
    assert unpack(None) == {}
