"""A digit reader: scikit-learn's 1797 scanned 8x8 digits, a small CNN, and the functions that serve and score it."""

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]


class DigitNet(nn.Module):
    """Two convolutions and a linear head; its batch norms and its dropout are why `eval()` matters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


def load_split() -> tuple[TensorDataset, TensorDataset]:
    """The training set and the test set: always the same 1437 and 360 images, each digit in equal share."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train(dataset: TensorDataset, epochs: int = 10, seed: int = 0) -> DigitNet:
    """Train from a fixed seed, in a fork of the random state so that the caller's own draws stay as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DigitNet()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        loader = DataLoader(dataset, batch_size=64, shuffle=True)
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return model.eval()


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The probability of each digit, one row per image."""
    model.eval()
    probabilities: Tensor = model(images).softmax(dim=1)
    return probabilities


def serve_one(model: nn.Module, image: Tensor) -> tuple[int, float]:
    """What a service would answer for one image: the digit, and how sure the model is of it."""
    confidence, digit = predict(model, image.unsqueeze(0)).squeeze(0).max(dim=0)
    return int(digit), float(confidence)


def accuracy(model: nn.Module, loader: Loader) -> float:
    """The share of images that are read right."""
    hits = [predict(model, images).argmax(dim=1) == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()
