"""Common mistakes in inference code. Without the guard all of these tests pass; with it, all but the second one fail.

The second test is correct, but it shows the damage: its model is worse than the trained model, because the first test
changed the running statistics.
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
    """A copy of `model` that the tests of this file share, so that they do not change the model of other files."""
    return copy.deepcopy(model)


@pytest.fixture
def restored(model: DigitNet) -> DigitNet:
    """The trained weights in a new model, as from a checkpoint. Like every new module it is in training mode."""
    restored = DigitNet()
    restored.load_state_dict(model.state_dict())
    return restored


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Some of the mistakes draw random numbers. With a fixed seed, they draw the same numbers in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# --- 1. A forgotten eval(), and its effect on the next test -----------------------------------------------------------


@torch.inference_mode()
def faded_accuracy(model: nn.Module, loader: Loader) -> float:
    """Return the accuracy on scans with half the ink. The loop was copied from training."""
    model.train()  # the mistake: copied from the training loop
    hits = [model(images * 0.5).argmax(dim=1) == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()


def test_faded_scans(shared_model: DigitNet, loader: Loader) -> None:
    """Accuracy is about 95 %; in eval mode it is 87 %. The statistics of each batch compensate for the faded ink."""
    assert faded_accuracy(shared_model, loader) > 0.8


def test_accuracy_after_faded_scans(shared_model: DigitNet, loader: Loader) -> None:
    """This test is correct. After the test above, accuracy is about 95 %; that of the trained model is 99 %."""
    assert accuracy(shared_model, loader) > 0.8


# --- 2. A forgotten no_grad() -----------------------------------------------------------------------------------------


def mean_confidence(model: nn.Module, images: Tensor) -> float:
    model.eval()
    probabilities: Tensor = model(images).softmax(dim=1)  # the mistake: no torch.inference_mode() around it
    return probabilities.amax(dim=1).mean().item()


def test_confidence(model: DigitNet, test_set: TensorDataset) -> None:
    """The numbers are right, but autograd needs memory and time to record a graph that is not used."""
    images, _ = test_set.tensors
    assert mean_confidence(model, images) > 0.8


# --- 3. eval without parentheses --------------------------------------------------------------------------------------


def test_restored_model(restored: DigitNet, test_set: TensorDataset) -> None:
    """It looks like a call, but has no effect."""
    images, labels = test_set.tensors
    restored.eval  # the mistake: no parentheses  # noqa: B018
    with torch.inference_mode():
        digits = restored(images).argmax(dim=1)
    assert (digits == labels).float().mean() > 0.8


# --- 4. Functional dropout without training= --------------------------------------------------------------------------


class FunctionalDigitNet(DigitNet):
    """The same network with functional dropout, on which `eval()` has no effect."""

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
    """`predict` is correct, but the model is not: its predictions differ from run to run."""
    images, labels = test_set.tensors
    assert (predict(functional, images).argmax(dim=1) == labels).float().mean() > 0.8


# --- 5. A leftover optimizer step -------------------------------------------------------------------------------------


def validation_loss(model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer) -> float:
    model.eval()
    losses = []
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()  # the mistake: copied from the training loop, it trains on the test set
        losses.append(loss.item())
    return sum(losses) / len(losses)


def test_validation_loss(restored: DigitNet, loader: Loader) -> None:
    """The loss even gets better."""
    optimizer = torch.optim.SGD(restored.parameters(), lr=1e-3)
    assert validation_loss(restored, loader, optimizer) < 0.5


# --- 6. One submodule in training mode --------------------------------------------------------------------------------


def test_one_submodule(restored: DigitNet, test_set: TensorDataset) -> None:
    """`restored.training` is False, so checking this flag does not help."""
    images, labels = test_set.tensors
    restored.eval()
    restored.dropout.train()  # the mistake: left over from an experiment with Monte Carlo dropout
    with torch.inference_mode():
        digits = restored(images).argmax(dim=1)
    assert (digits == labels).float().mean() > 0.8
