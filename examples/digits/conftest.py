"""One trained model and one test set for the whole session, as in a typical suite."""

from collections.abc import Iterator

import pytest
import torch
from digits import DigitNet, Loader, load_split, train
from torch.utils.data import DataLoader, TensorDataset


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--inject", action="store_true", help="break the evaluation in each test of test_lost_accuracy.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """With images this small a second thread does not help, and xdist workers would compete for the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model() -> DigitNet:
    """The trained model that all tests share. A change in one test affects the next one."""
    train_set, _ = load_split()
    return train(train_set)


@pytest.fixture(scope="session")
def test_set() -> TensorDataset:
    _, test_set = load_split()
    return test_set


@pytest.fixture(scope="session")
def loader(test_set: TensorDataset) -> Loader:
    """Small batches. In training mode eight images give a batch norm poor statistics."""
    return DataLoader(test_set, batch_size=8)
