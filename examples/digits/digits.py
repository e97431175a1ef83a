"""A small CNN that classifies scikit-learn's 1797 scanned 8x8 digits, and functions to train and evaluate it."""

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[Tensor, ...]]


class DigitNet(nn.Module):
    """Two convolutions and a linear head. Because of its batch norms and its dropout, `eval()` matters."""

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
    """Return the training set (1437 images) and the test set (360 images): a fixed, stratified split."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).div(16).unsqueeze(1)
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train(dataset: TensorDataset, epochs: int = 10, seed: int = 0) -> DigitNet:
    """Train with a fixed seed. The random generators are forked, so the caller's random numbers do not change."""
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
    """Return the probability of each digit, of shape `(images, 10)`."""
    model.eval()
    probabilities: Tensor = model(images).softmax(dim=1)
    return probabilities


def serve_one(model: nn.Module, image: Tensor) -> tuple[int, float]:
    """Classify one image, as a service would: return the digit and its probability."""
    confidence, digit = predict(model, image.unsqueeze(0)).squeeze(0).max(dim=0)
    return int(digit), float(confidence)


def accuracy(model: nn.Module, loader: Loader) -> float:
    """Return the fraction of images that are classified correctly."""
    hits = [predict(model, images).argmax(dim=1) == labels for images, labels in loader]
    return torch.cat(hits).float().mean().item()
