from __future__ import annotations

import pytest

from pytest_evalmode.rules.exemptions import matches
from pytest_evalmode.rules.globs import narrowest_globs

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("paths", "globs"),
    [
        ([], []),
        (["drop"], ["drop"]),
        (["drop", "bn"], ["drop", "bn"]),
        (["bn1.running_mean", "bn1.running_var"], ["bn1.running_*"]),
        ([f"bn{i}.{n}" for i in (1, 2) for n in STATISTICS[:2]], ["bn*.running_*"]),
        ([f"bn{i}.{n}" for i in (1, 2) for n in STATISTICS], ["bn*.running_*", "bn*.num_batches_tracked"]),
        (["features.1", "features.5"], ["features.1", "features.5"]),
        ([f"features.{i}" for i in (1, 3, 5, 7)], ["features.*"]),
        (
            [f"{bn}.{n}" for bn in ("bn1", "layer1.0.bn1", "layer2.1.bn2", "layer1.0.down.1") for n in STATISTICS],
            ["*.running_*", "*.num_batches_tracked"],
        ),
        (["a", "b", "c", "d"], ["*"]),
        (
            ["queue", "queue_ptr", *(f"key.{i}.{n}" for i in (0, 2) for n in ("weight", "bias"))],
            ["queue*", "key.*"],
        ),
        ([f"key.{n}" for n in "abcd"], ["key.*"]),
        ([f"{part}.{n}" for part in "klmn" for n in "abcd"], ["*"]),
        (["fc.weight", "fc.bias"], ["fc.weight", "fc.bias"]),
    ],
)
def test_narrowest_globs_match_all_paths(paths: list[str], globs: list[str]) -> None:
    assert narrowest_globs(paths) == globs
    assert all(matches("model", path, globs) for path in paths)


def test_the_globs_do_not_match_tensors_that_did_not_change() -> None:
    globs = narrowest_globs([f"bn{i}.{n}" for i in (1, 2) for n in STATISTICS])
    assert not any(matches("model", path, globs) for path in ("bn1.weight", "bn2.bias", "fc.weight"))


def test_a_prefix_does_not_match_the_part_beside_it() -> None:
    globs = narrowest_globs(["queue", "queue_ptr", *(f"key.{i}.{n}" for i in (0, 2) for n in ("weight", "bias"))])
    assert not any(matches("model", path, globs) for path in ("query.0.weight", "keys", "key_proj.weight"))
