"""Lock files that were edited by hand, truncated or written by another tool: one clear error each, and nothing else."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode.lock.lock_file import LockError, lock_path
from pytest_evalmode.lock.lock_folder import NewLock, exclusive, remove_leftovers, write_lock
from pytest_evalmode.lock.running_lock import RunningLock

EXACT = None, None
X = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))


def use(lock: RunningLock, factor: float = 1.0) -> None:
    torch.manual_seed(0)
    lock.model(nn.Linear(5, 3), "net", None, None)
    lock.add("inputs", "x", {"rows": X * factor, "texts": ["a", "é"] * 6}, EXACT, lambda: None)
    lock.preprocessing({"mean": [0.5], "factor": factor}, "eval", None)
    lock.add("outputs", "y", X.sum(1) * factor, EXACT, lambda: None)


def write(folder: Path) -> list[Path]:
    """Write the lock of a test, and return its files."""
    test_file = folder / "test_it.py"
    lock = RunningLock(test_file, "test", update=True)
    use(lock)
    lock.close(finished=True)
    record = json.loads(lock.record())
    models = {key: (entry, b64decode(data)) for key, (entry, data) in record["models"].items()}
    path = lock_path(test_file, "test")
    with exclusive(path.parents[1]):
        write_lock(path, NewLock("test", record["entries"], b64decode(record["samples"]), models))
        remove_leftovers(path.parents[1])
    return sorted(each for each in path.parents[1].rglob("*") if each.is_file())


def tamper(data: bytes, random: Random) -> bytes:
    """Change some bytes, a value, or the length."""
    where = random.randrange(len(data))
    kind = random.randrange(6)
    if kind == 0:
        return data[:where]
    if kind == 1:
        return data[:where] + bytes([random.randrange(256)]) + data[where + 1 :]
    if kind == 2:
        return data + bytes(random.randrange(1, 99))
    if kind == 3:
        return data[:where] + data[where + random.randrange(1, 40) :]
    values = [b"null", b"-1", b"[]", b"{}", b'"\\u0000\\u001b[31m"', b"1e999", b"99999999999999999999", b"true", b"NaN"]
    colons = [i + 2 for i in range(len(data) - 3) if data[i : i + 2] == b": "] or [where]
    start = random.choice(colons)
    end = next((i for i in range(start, len(data)) if data[i : i + 1] in (b",", b"\n")), len(data))
    return data[:start] + random.choice(values) + data[end:]


def compare(folder: Path, factor: float) -> list[Any] | str:
    """Return the changes, or the message of the error."""
    try:
        lock = RunningLock(folder / "test_it.py", "test", update=False)
        use(lock, factor)
        return list(lock.close(finished=True))
    except LockError as error:
        return str(error)


def test_an_untouched_lock_matches(tmp_path: Path) -> None:
    assert [path.suffix for path in write(tmp_path)].count(".safetensors") == 2
    assert compare(tmp_path, 1.0) == []
    changes = compare(tmp_path, 2.0)
    assert [each.kind for each in changes] == ["preprocessing", "inputs", "outputs"]  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(4))
def test_a_tampered_file_is_one_clear_error_and_an_update_heals_it(tmp_path: Path, seed: int) -> None:
    paths = write(tmp_path)
    good = {path: path.read_bytes() for path in paths}
    random = Random(seed)
    for i in range(100):
        path = paths[i % len(paths)]
        path.write_bytes(tamper(good[path], random))
        result = compare(tmp_path, random.choice([1.0, 2.0]))
        messages = [result] if isinstance(result, str) else [each.finding for each in result]
        assert all(message and "\x1b" not in message and "Traceback" not in message for message in messages)
        write(tmp_path)
        assert {each: each.read_bytes() for each in paths} == good


@pytest.mark.parametrize("kept", ["99999999999999999999", "0,9223372036854775808", "-99999999999999999999", "1,x"])
def test_samples_with_impossible_positions_are_one_clear_error(tmp_path: Path, kept: str) -> None:
    write(tmp_path)
    path = lock_path(tmp_path / "test_it.py", "test")
    content = json.loads(path.read_text())
    content["inputs"]["x"]["arrays"]["rows"]["kept"] = kept
    path.write_text(json.dumps(content))
    assert "inputs 'x' has no valid arrays; run pytest --evalmode-update-lock" in compare(tmp_path, 2.0)
