"""A custom model server.  The guard does not find its models, because no fixture provides them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Server:
    """Serves models by name."""

    def __init__(self) -> None:
        self._slots: dict[str, bytes] = {}
        self._running: list[tuple[str, nn.Module]] = []

    def load(self, name: str, model: nn.Module) -> None:
        self._running.append((name, model.eval()))

    def models(self) -> dict[str, nn.Module]:
        return dict(self._running)

    @torch.inference_mode()
    def predict(self, name: str, batch: Tensor) -> Tensor:
        logits: Tensor = self.models()[name](batch)
        return logits.argmax(-1)


SERVER = Server()
SERVER.load("ranker", nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
SERVER.load("tiny", nn.Sequential(nn.Linear(4, 2)).half())
