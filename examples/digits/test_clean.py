"""Correct inference: every test is guarded, and the guard reports no violations."""

import pytest
import torch
from digits import DigitNet, Loader, accuracy, predict, serve_one
from torch import nn
from torch.utils.data import TensorDataset

pytestmark = pytest.mark.inference


def test_accuracy(model: DigitNet, loader: Loader) -> None:
    assert accuracy(model, loader) > 0.97


def test_serving_agrees_with_the_batch(model: DigitNet, test_set: TensorDataset) -> None:
    """In eval mode the prediction for an image does not depend on the other images in its batch."""
    images, _ = test_set.tensors
    confidences, digits = predict(model, images).max(dim=1)
    served = [serve_one(model, image) for image in images]
    assert [digit for digit, _ in served] == digits.tolist()
    assert [confidence for _, confidence in served] == pytest.approx(confidences.tolist(), abs=1e-4)


def test_recall_of_every_digit(model: DigitNet, test_set: TensorDataset) -> None:
    """A high accuracy can hide one digit that is often misclassified. The recall of each digit shows it."""
    images, labels = test_set.tensors
    confusion = torch.bincount(labels * 10 + predict(model, images).argmax(dim=1), minlength=100).view(10, 10)
    recall = confusion.diagonal() / confusion.sum(dim=1)
    assert recall.min() > 0.85


def test_top_two(model: DigitNet, test_set: TensorDataset) -> None:
    """If the first guess is wrong, the second is almost always right."""
    images, labels = test_set.tensors
    guesses = predict(model, images).topk(2).indices
    assert (guesses == labels.unsqueeze(1)).any(dim=1).float().mean() > 0.99


def test_evaluation_loop(model: DigitNet, loader: Loader) -> None:
    """A typical evaluation loop. The criterion is a module, too, but it does not need eval mode."""
    criterion = nn.CrossEntropyLoss()
    model.eval()
    loss = correct = total = 0.0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            loss += criterion(logits, labels).item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            total += len(labels)
    assert loss / total < 0.15
    assert correct / total > 0.97
