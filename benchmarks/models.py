"""The models that are guarded: all in eval mode, all with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from benchmarks.resnet import resnet50

__all__ = ["bert", "decoder", "layers", "linears", "mlp", "resnet50", "tensors"]


def bert() -> nn.Module:
    model: nn.Module = BertModel(BertConfig())
    return model.eval()


def decoder() -> Any:
    """A language model with `generate()`, small enough for a token to take a few milliseconds."""
    config = GPT2Config(vocab_size=1000, n_embd=256, n_layer=6, n_head=4, bos_token_id=0, eos_token_id=None)
    model: nn.Module = GPT2LMHeadModel(config)
    return model.eval()


def layers(number: int) -> nn.Module:
    """So little to compute that what is done for each module is all there is."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(number))).eval()


def linears(millions: int, device: str = "cpu") -> nn.Module:
    """The bulk of a language model: square matrices of 16.8 million parameters, in half precision."""
    side = 4096
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(millions * 10**6 // side**2)))
    model = model.bfloat16().to_empty(device=device)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    return model.eval()


def tensors(number: int, elements: int) -> nn.Module:
    """Parameters, and nothing to run."""
    return nn.ParameterList(torch.rand(elements) for _ in range(number)).eval()


def mlp() -> nn.Module:
    """Eleven modules that cost next to nothing, as the models of most tests do."""
    hidden = [part for _ in range(3) for part in (nn.Linear(32, 32), nn.ReLU(), nn.Dropout())]
    return nn.Sequential(*hidden, nn.Linear(32, 8)).eval()
