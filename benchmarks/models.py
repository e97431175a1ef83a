"""The models of the benchmarks, in eval mode and with random weights."""

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
    """Return a language model with `generate()` that needs a few milliseconds per token."""
    config = GPT2Config(vocab_size=1000, n_embd=256, n_layer=6, n_head=4, bos_token_id=0, eos_token_id=None)
    model: nn.Module = GPT2LMHeadModel(config)
    return model.eval()


def layers(number: int) -> nn.Module:
    """Return a model of tiny layers: most of its time is the cost of module calls."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(number))).eval()


def linears(millions: int, device: str = "cpu") -> nn.Module:
    """Return a stack of square matrices like those of a language model: 16.8 million parameters each, in bfloat16."""
    side = 4096
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(millions * 10**6 // side**2)))
    model = model.bfloat16().to_empty(device=device)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    return model.eval()


def tensors(number: int, elements: int) -> nn.Module:
    """Return a module with parameters and without a forward."""
    return nn.ParameterList(torch.rand(elements) for _ in range(number)).eval()


def mlp() -> nn.Module:
    """Return a model of eleven small modules, as in most tests."""
    hidden = [part for _ in range(3) for part in (nn.Linear(32, 32), nn.ReLU(), nn.Dropout())]
    return nn.Sequential(*hidden, nn.Linear(32, 8)).eval()
