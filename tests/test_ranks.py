"""Distributed runs: each rank guards its own shard, reports it under its rank, and waits for no other rank."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import forked, suites

SUITE = """
import os

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.environ["RANK"])
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def mesh():
    distributed.init_process_group("gloo", init_method=f"file://{os.getcwd()}/store", rank=RANK, world_size=2)
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).eval()


def fsdp2(mesh):
    model = net()
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def dtensor(mesh):
    shard = lambda name, layer, mesh: [
        layer.register_parameter(key, nn.Parameter(distribute_tensor(value.detach(), mesh, [Shard(0)])))
        for key, value in list(layer.named_parameters(recurse=False))
    ]
    return distribute_module(
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2)).eval(),
        mesh,
        shard,
        lambda module, inputs, mesh: DTensor.from_local(inputs[0], mesh, [Shard(0)]),
        lambda module, output, mesh: output.to_local(),
    )


def ddp(mesh):
    return DistributedDataParallel(net())


@pytest.fixture(params=[fsdp2, dtensor, ddp], ids=lambda make: make.__name__)
def model(request, mesh):
    return request.param(mesh)


@torch.no_grad()
def infer(model):
    return model(torch.ones(2, 4))


@torch.no_grad()
def write(model):
    weight = getattr(model, "module", model)[0].weight
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    local[0, 0] += 1


@pytest.mark.inference
def test_clean(model):
    infer(model)
    infer(model)


@pytest.mark.inference
def test_training(model):
    infer(model.train())


@pytest.mark.inference
def test_recording(model):
    model(torch.ones(2, 4))


@pytest.mark.inference
def test_written_on_one_rank(model):
    infer(model)
    if RANK == 1:
        write(model)


def test_guarded_on_one_rank(model, request):
    '''If the guard used a collective, it would wait forever for the other rank.'''
    if RANK == 1:
        request.getfixturevalue("evalmode").watch(model)
    infer(model)
"""


@pytest.fixture(scope="module", params=["default", "strict"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run the suite on two ranks; return their reports, each with its terminal output under `output`."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    (folder / "test_it.py").write_text(SUITE, encoding="utf-8")
    options = ["--evalmode-strict"] if request.param == "strict" else []
    command = ["-c", os.devnull, "--rootdir=.", *suites.PLAIN, "--evalmode-report=report.json", *options]
    import_module("torch.distributed.fsdp")  # once, not in each rank

    def start(rank: int) -> forked.Wait:
        env = {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
        return forked.start_pytest(folder, *command, env=env)

    outputs = [wait().stdout for wait in [start(rank) for rank in (0, 1)]]
    reports = []
    for rank, output in enumerate(outputs):
        report = json.loads((folder / f"report.rank{rank}.json").read_text(encoding="utf-8"))
        reports.append({**report, "output": output})
    assert not (folder / "report.json").exists()
    return reports


def broken_rules(report: dict[str, Any], test: str, kind: str) -> dict[str, list[str]]:
    """Return the subjects by rule of a test with a kind of model."""
    (entry,) = (entry for entry in report["tests"] if entry["nodeid"] == f"test_it.py::{test}[{kind}]")
    return {violation["rule"]: violation["subjects"] for violation in entry["violations"]}


KINDS = pytest.mark.parametrize("kind", ["fsdp2", "dtensor", "ddp"])


@KINDS
def test_clean_inference_passes_on_every_rank(ranks: list[dict[str, Any]], kind: str) -> None:
    assert [broken_rules(rank, "test_clean", kind) for rank in ranks] == [{}, {}]
    assert [broken_rules(rank, "test_guarded_on_one_rank", kind) for rank in ranks[1:]] == [{}]


@KINDS
def test_modes_are_reported_on_every_rank(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        statistics = set() if kind == "dtensor" else {"state-mutated"}
        assert set(broken_rules(rank, "test_training", kind)) == {"train-mode", *statistics}
        assert broken_rules(rank, "test_recording", kind) == {"grad-mode": ["model (Sequential)"]}


@KINDS
def test_a_change_is_reported_by_the_rank_that_holds_the_shard(ranks: list[dict[str, Any]], kind: str) -> None:
    assert [broken_rules(rank, "test_written_on_one_rank", kind) for rank in ranks] == [
        {},
        {"state-mutated": ["model.0.weight"]},
    ]


def test_the_summary_names_the_rank(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        lines = rank["output"].splitlines()
        assert [line.strip("= ") for line in lines if "= evalmode" in line] == [f"evalmode, rank {number} of 2"]
        assert any(f"report.rank{number}.json" in line for line in lines)
