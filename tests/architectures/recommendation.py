"""Recommender models, written after their papers: the packages that have them access the network at import."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.describe import Architecture, floats, from_path, integers, merge

ITEMS, FIELDS, WIDTH = 20, 3, 8


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inward, outward in pairwise(widths):
        layers += [nn.Linear(inward, outward), nn.BatchNorm1d(outward), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """Deep learning recommendation model: embedding bags of sparse features, and their pairwise products."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(ITEMS, WIDTH) for _ in range(FIELDS))
        self.bottom = _mlp(4, WIDTH)
        self.top = nn.Sequential(_mlp(WIDTH + FIELDS * (FIELDS + 1) // 2, 16), nn.Linear(16, 1))

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        below = self.bottom(dense)
        vectors = torch.stack([below, *(bag(sparse[:, i]) for i, bag in enumerate(self.bags))], 1)
        row, column = torch.tril_indices(FIELDS + 1, FIELDS + 1, -1)
        products = (vectors @ vectors.mT)[:, row, column]
        score: Tensor = self.top(torch.cat([below, products], 1))
        return score.sigmoid()


class DeepFM(nn.Module):
    """A factorization machine beside a deep network, over shared embeddings."""

    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Embedding(FIELDS * ITEMS, 1)
        self.vectors = nn.Embedding(FIELDS * ITEMS, WIDTH)
        self.deep = nn.Sequential(_mlp(FIELDS * WIDTH, 16), nn.Linear(16, 1))
        self.register_buffer("offsets", torch.arange(FIELDS) * ITEMS, persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        index = fields + self.offsets
        vectors = self.vectors(index)
        second = (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True) / 2
        score: Tensor = self.weights(index).sum(1) + second + self.deep(vectors.flatten(1))
        return score.sigmoid()


class CrossNetwork(nn.Module):
    """Deep & cross: the input crossed with itself, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(ITEMS, WIDTH)
        self.cross = nn.ModuleList(nn.Linear(FIELDS * WIDTH, FIELDS * WIDTH) for _ in range(2))
        self.deep = _mlp(FIELDS * WIDTH, 16)
        self.score = nn.Linear(FIELDS * WIDTH + 16, 1)

    def forward(self, fields: Tensor) -> Tensor:
        crossed = given = self.vectors(fields).flatten(1)
        for layer in self.cross:
            crossed = given * layer(crossed) + crossed
        score: Tensor = self.score(torch.cat([crossed, self.deep(given)], 1))
        return score


class InterestNetwork(nn.Module):
    """Deep interest network: the user's history, weighted by its similarity to the offered item."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.attention = nn.Sequential(nn.Linear(4 * WIDTH, 16), nn.PReLU(), nn.Linear(16, 1))
        self.top = nn.Sequential(_mlp(2 * WIDTH, 16), nn.Linear(16, 1))

    def forward(self, history: Tensor, target: Tensor) -> Tensor:
        seen, offered = self.items(history), self.items(target)
        query = offered.unsqueeze(1).expand_as(seen)
        weights = self.attention(torch.cat([query, seen, query - seen, query * seen], -1))
        interest = (weights.masked_fill((history == 0).unsqueeze(-1), 0) * seen).sum(1)
        score: Tensor = self.top(torch.cat([interest, offered], 1))
        return score


class SequentialAttention(nn.Module):
    """SASRec: predicts the next item from the previous ones."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(6, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, history: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(history.shape[1])
        hidden: Tensor = self.encoder(self.items(history) + self.positions, mask, is_causal=True)
        return hidden @ self.items.weight.T


class ExpertsPerTask(nn.Module):
    """MMoE: experts shared by all tasks, with one gate per task."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_mlp(4, WIDTH) for _ in range(3))
        self.gates = nn.ModuleDict({task: nn.Linear(4, 3) for task in ("click", "buy")})
        self.towers = nn.ModuleDict({task: nn.Linear(WIDTH, 1) for task in ("click", "buy")})

    def forward(self, dense: Tensor) -> dict[str, Tensor]:
        experts = torch.stack([expert(dense) for expert in self.experts], 1)
        mixed = {task: (gate(dense).softmax(1).unsqueeze(2) * experts).sum(1) for task, gate in self.gates.items()}
        return {task: tower(mixed[task]) for task, tower in self.towers.items()}


class TwoTowers(nn.Module):
    """One tower for users and one for items, compared by cosine similarity."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Sequential(nn.Embedding(ITEMS, WIDTH), _mlp(WIDTH, 16))
        self.item = nn.Sequential(nn.Embedding(ITEMS, WIDTH), _mlp(WIDTH, 16))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return F.cosine_similarity(self.user(user), self.item(item))


_HERE = "tests.architectures.recommendation:"

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
RECOMMENDATION: tuple[Architecture, ...] = (
    from_path("cross-network", _HERE + "CrossNetwork", integers(ITEMS, fields=(8, FIELDS))),
    from_path("deepfm", _HERE + "DeepFM", integers(ITEMS, fields=(8, FIELDS))),
    from_path("dlrm", _HERE + "DLRM", merge(floats(dense=(8, 4)), integers(ITEMS, sparse=(8, FIELDS, 2)))),
    from_path("interest-network", _HERE + "InterestNetwork", integers(ITEMS, history=(8, 6), target=(8,))),
    from_path("mmoe", _HERE + "ExpertsPerTask", floats(dense=(8, 4))),
    from_path("sasrec", _HERE + "SequentialAttention", integers(ITEMS, history=(8, 6))),
    from_path("two-towers", _HERE + "TwoTowers", integers(ITEMS, user=(8,), item=(8,))),
)
# fmt: on
