"""What changed in a model since its record was stored; a record is shared by all tests that lock the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pytest_evalmode.lock import checkpoint, model_entry
from pytest_evalmode.lock.lock_file import Entry, LockError, digest_of, encode, read_model, read_samples
from pytest_evalmode.lock.sample_store import Arrays, pack, unpack
from pytest_evalmode.trace import LockChange, Site

if TYPE_CHECKING:
    from pytest_evalmode.observe.state.fingerprint import Fingerprint


def build_entry(module: nn.Module) -> tuple[Entry, tuple[Entry, bytes | None]]:
    """Return the lock entry of a model, and its record with a few values as the contents of a safetensors file."""
    contents = model_entry.read_contents(module)
    samples = pack(model_entry.sample_values(contents))
    record = {**model_entry.build_entry(contents), "samples": digest_of(samples) if samples else ""}
    entry = {"type": contents.type, "record": digest_of(encode(record)), "tensors": len(contents.records)}
    return entry, (record, samples)


def find_change(
    path: Path, module: nn.Module, name: str, fingerprints: Mapping[str, Fingerprint] | None, at: Site | None
) -> LockChange | None:
    """Compare a model with its record at a path, and return what changed; None if nothing did.

    `fingerprints` are those of the model's tensors, if a guard has read them.
    """
    try:
        record = read_model(path)
    except LockError as error:
        entry, _ = build_entry(module)
        if path.name == f"{entry['record']}.lock.json":
            return None
        headline = f"{name} ({entry['type']}) changed; its record cannot be read, so the cause is not recognized"
        return LockChange("model", name, headline, f"{headline}: {error}", at)
    if fingerprints is not None and model_entry.is_known_to_match(record, module, fingerprints):
        return None
    contents = model_entry.read_contents(module)
    if model_entry.matches(record, contents):
        return None
    samples: Arrays = {}
    problem = ""
    try:
        samples = unpack(read_samples(path, record["samples"]))
    except LockError as error:
        problem = f"; {error}"
    try:
        causes = checkpoint.diagnose(record, contents, samples)
    except Exception as error:  # values that do not fit the record
        causes = checkpoint.diagnose(record, contents, {})
        problem = f"; the stored values cannot be used: {error}"
    title = contents.type if name == contents.type else f"{name} ({contents.type})"
    headline, details = checkpoint.describe_causes(title, causes)
    return LockChange("model", name, headline, f"{headline}{problem}", at, details=details)
