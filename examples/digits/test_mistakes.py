"""The mistakes people make with inference. Plain pytest passes every one of these tests; the guard does not.

Only the second test is right, and it is the reason for the others: it gets a worse model than the one that was trained,
because the test before it moved the running statistics.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from digits import DigitNet, Loader, accuracy, predict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

pytestmark = pytest.mark.inference


@pytest.fixture(scope="module")
def shared_model(model: DigitNet) -> DigitNet:
    """Shared by the tests of this file, as `model` is by the session; a copy, so that the damage stays in here."""
    return copy.deepcopy(model)


@pytest.fixture
def restored(model: DigitNet) -> DigitNet:
    """The trained weights in a new model, as from a checkpoint: like every new module it is in training mode."""
    restored = DigitNet()
    restored.load_state_dict(model.state_dict())
    return restored


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Several of the mistakes draw random numbers: with a seed they do so alike in every run and in any order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- 1. eval() forgotten, and what it does to the next test -----------------------------------------------------------


@torch.inference_mode()
def faded_accuracy(model: nn.Module, loader: Loader) -> float:
    """Accuracy on scans with half the ink, an augmentation that came out of the training loop."""
    model.train()  # the mistake: this line came along with it
    hits = [model(images * 0.5).argmax(dim=1) == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()


def test_faded_scans(shared_model: DigitNet, loader: Loader) -> None:
    """About 95 %, and flattered: batch by batch, batch norm evens out the faded ink; in eval mode it is 87 %."""
    assert faded_accuracy(shared_model, loader) > 0.8


def test_accuracy_after_that(shared_model: DigitNet, loader: Loader) -> None:
    """Nothing is wrong here; after the test above it still reads about 95 %, where the trained model reads 99 %."""
    assert accuracy(shared_model, loader) > 0.8


# --- 2. no_grad() forgotten -------------------------------------------------------------------------------------------


def mean_confidence(model: nn.Module, images: Tensor) -> float:
    model.eval()
    probabilities: Tensor = model(images).softmax(dim=1)  # the mistake: no torch.inference_mode() around it
    return probabilities.amax(dim=1).mean().item()


def test_confidence(model: DigitNet, test_set: TensorDataset) -> None:
    """The numbers are right; the memory and the time for a graph that nobody asked for are the price."""
    images, _ = test_set.tensors
    assert mean_confidence(model, images) > 0.8


# --- 3. eval without parentheses --------------------------------------------------------------------------------------


def test_restored_model(restored: DigitNet, test_set: TensorDataset) -> None:
    """It reads like a call, and does nothing."""
    images, labels = test_set.tensors
    restored.eval  # the mistake: no parentheses  # noqa: B018
    with torch.inference_mode():
        digits = restored(images).argmax(dim=1)
    assert (digits == labels).float().mean() > 0.8


# --- 4. functional dropout without training= --------------------------------------------------------------------------


class FunctionalDigitNet(DigitNet):
    """The same network, its dropout written as a function: `eval()` does not reach it."""

    def forward(self, images: Tensor) -> Tensor:
        features = F.dropout(self.features(images), 0.5)  # the mistake: no training=self.training
        logits: Tensor = self.head(features)
        return logits


@pytest.fixture
def functional(model: DigitNet) -> FunctionalDigitNet:
    functional = FunctionalDigitNet()
    functional.load_state_dict(model.state_dict())
    return functional


def test_functional_dropout(functional: FunctionalDigitNet, test_set: TensorDataset) -> None:
    """`predict` does everything right; the model does not, and answers differently every time."""
    images, labels = test_set.tensors
    assert (predict(functional, images).argmax(dim=1) == labels).float().mean() > 0.8


# --- 5. an optimizer step left over -----------------------------------------------------------------------------------


def validation_loss(model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer) -> float:
    model.eval()
    losses = []
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()  # the mistake: the loop was copied from training, and this trains on the test set
        losses.append(loss.item())
    return sum(losses) / len(losses)


def test_validation_loss(restored: DigitNet, loader: Loader) -> None:
    """The loss even looks better for it."""
    optimizer = torch.optim.SGD(restored.parameters(), lr=1e-3)
    assert validation_loss(restored, loader, optimizer) < 0.5


# --- 6. one submodule left in training mode ---------------------------------------------------------------------------


def test_one_submodule(restored: DigitNet, test_set: TensorDataset) -> None:
    """`restored.training` is False, so a look at that flag would not find it."""
    images, labels = test_set.tensors
    restored.eval()
    restored.dropout.train()  # the mistake: left over from a try at Monte Carlo dropout
    with torch.inference_mode():
        digits = restored(images).argmax(dim=1)
    assert (digits == labels).float().mean() > 0.8
