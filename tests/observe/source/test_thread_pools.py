"""A model that a thread pool runs is reported with the line that submitted it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.nets import Net, batch, only, watching


def submit(model: nn.Module) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(model, batch())  # here
        future.result()


def to_thread(model: nn.Module) -> None:
    async def serve() -> Any:
        task = asyncio.create_task(wait())
        await task

    async def wait() -> Any:
        return await asyncio.to_thread(model, batch())  # here

    asyncio.run(serve())


def submit_a_function(model: nn.Module) -> None:
    def predict() -> Any:
        return model(batch())  # here

    with ThreadPoolExecutor(1) as pool:
        pool.submit(predict).result()


@pytest.mark.parametrize("run", [submit, to_thread, submit_a_function])
def test_the_users_line_is_reported(run: Any) -> None:
    model = Net().eval()
    with watching(model) as g:
        run(model)
    at = only(g, "grad-mode").at
    assert at is not None
    assert at.source.endswith("# here")


def test_results_and_exceptions_of_a_pool_are_unchanged() -> None:
    with watching() as g, torch.no_grad(), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(str, range(9))) == list(map(str, range(9)))
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()
    assert g.violations == []


def test_a_pool_works_in_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    model = Net().eval()
    with watching(model) as g, ThreadPoolExecutor(1) as pool:
        assert pool.submit(len, "abc").result() == 3
        pool.submit(model, batch()).result()  # here
    at = only(g, "grad-mode").at
    assert at is not None
    assert at.source.endswith("# here")
