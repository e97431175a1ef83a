"""One trained model and one test set for the whole session, as a suite around a real model would have them."""

from collections.abc import Iterator

import pytest
import torch
from digits import DigitNet, Loader, load_split, train
from torch.utils.data import DataLoader, TensorDataset


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--inject", action="store_true", help="put into each test of test_lost_accuracy.py what is wrong")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On images this small a second thread gains nothing, and the workers of xdist would fight over the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model() -> DigitNet:
    """Trained once and shared by every test: what one test does to it, the next one gets."""
    train_set, _ = load_split()
    return train(train_set)


@pytest.fixture(scope="session")
def test_set() -> TensorDataset:
    _, test_set = load_split()
    return test_set


@pytest.fixture(scope="session")
def loader(test_set: TensorDataset) -> Loader:
    """Small batches: in training mode eight images make poor statistics for a batch norm."""
    return DataLoader(test_set, batch_size=8)
