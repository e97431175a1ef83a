# ruff: noqa: E501  (the table of faults: one line each)
"""The score over models: faults on trained models, named right, not recognized, named wrong or missed."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

from pytest_evalmode.lock import checkpoint, model_entry
from tests.repetitions import PARTS, take_part

UNRECOGNIZED = re.compile(r"cause not recognized|no stored values")


class Attention(nn.Module):
    """Two layers of attention over the rows of an image, with an embedding and a tied copy beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 48)
        self.positions = nn.Embedding(8, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.reshape(-1, 8, 8)) + self.positions.weight
        y: Tensor = self.head(self.encoder(rows).mean(1))
        return y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 64, batch_first=True)
        self.act = nn.PReLU(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.rnn(x.reshape(-1, 8, 8))[0][:, -1]))
        return y


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10),
    )  # fmt: skip


BUILD: dict[str, Callable[[], nn.Module]] = {"conv": convolutional, "attention": Attention, "lstm": Recurrent}


@cache
def data() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


@cache
def _trained(kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = BUILD[kind]()
    train(net, 60, 5e-3)
    return net


def initial(kind: str) -> nn.Module:
    """Return the model from which `trained(kind)` was trained."""
    torch.manual_seed(0)
    return BUILD[kind]().eval()


def trained(kind: str, seed: int = 0) -> Any:
    return copy.deepcopy(_trained(kind, seed)).eval()


def train(net: nn.Module, steps: int, rate: float) -> None:
    images, labels = data()
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    net.train()
    for i in range(steps):
        optimizer.zero_grad()
        part = slice(i * 64 % 1600, i * 64 % 1600 + 64)
        with torch.enable_grad():
            nn.functional.cross_entropy(net(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    net.eval()


def fresh(net: nn.Module, seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return BUILD[kind_of(net)]().eval()


def kind_of(net: nn.Module) -> str:
    return "attention" if isinstance(net, Attention) else "lstm" if isinstance(net, Recurrent) else "conv"


def linear(net: nn.Module) -> Any:
    return [each for each in net.modules() if type(each) is nn.Linear][-1]


def big(net: nn.Module) -> nn.Parameter:
    return max((p for p in net.parameters() if p.dim() == 2), key=torch.Tensor.numel)


def matrices(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.dim() > 1]


def reset(*types: type) -> Callable[[Any], None]:
    def apply(net: nn.Module) -> None:
        torch.manual_seed(11)
        for each in net.modules():
            if isinstance(each, types):
                each.reset_parameters()  # type: ignore[operator]

    return apply


def rounded(*dtypes: torch.dtype) -> Callable[[nn.Module], None]:
    def apply(net: nn.Module) -> None:
        for p in net.parameters():
            value = p.detach()
            for dtype in dtypes:
                value = value.to(dtype)
            p.copy_(value.float())

    return apply


def quantized(bits: int, group: int = 0) -> Callable[[nn.Module], None]:
    def apply(net: nn.Module) -> None:
        for p in matrices(net):
            size = group or p[0].numel()
            if p.numel() % size == 0 and size >= 16:
                values = p.reshape(-1, size)
                scale = values.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                p.copy_(((values / scale).round() * scale).reshape(p.shape))

    return apply


def asymmetric(net: nn.Module) -> None:
    p = big(net)
    values = p.reshape(-1, 32)
    low = values.amin(1, keepdim=True)
    step = (values.amax(1, keepdim=True) - low) / 15
    p.copy_((((values - low) / step).round() * step + low).reshape(p.shape))


def trained_further(net: nn.Module) -> None:
    train(net, 20, 1e-3)


def averaged(net: nn.Module) -> None:
    before = copy.deepcopy(net)
    train(net, 20, 2e-3)
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        p.lerp_(q, 0.7)


def noisy(net: nn.Module) -> None:
    for p in net.parameters():
        p.add_(torch.randn_like(p) * 1e-3)


def set_module(path: str, make: Callable[[Any], nn.Module]) -> Callable[[Any], None]:
    def apply(net: nn.Module) -> None:
        net.set_submodule(path, make(net.get_submodule(path)))

    return apply


def set_attribute(path: str, name: str, value: object) -> Callable[[Any], None]:
    return lambda net: setattr(net.get_submodule(path), name, value)


def set_attributes(kind: type, name: str, value: object) -> Callable[[Any], None]:
    def apply(net: nn.Module) -> None:
        for each in net.modules():
            if isinstance(each, kind):
                setattr(each, name, value)

    return apply


def channels_last(net: nn.Module) -> None:
    for p in net.parameters():
        if p.dim() == 4:
            p.data = p.data.to(memory_format=torch.channels_last)


def with_gradients(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)


def forwards_in_training_mode(net: nn.Module) -> None:
    net.train()
    for i in range(3):
        net(data()[0][i * 32 : i * 32 + 32] * 2)
    net.eval()


def low_rank(net: nn.Module) -> None:
    p = big(net)
    p.add_(torch.randn(p.shape[0], 4) @ torch.randn(4, p.shape[1]) * 0.02)


def swap_conv_layers(net: Any) -> None:
    first, second = net.encoder.layers
    a, b = copy.deepcopy(first.state_dict()), copy.deepcopy(second.state_dict())
    first.load_state_dict(b)
    second.load_state_dict(a)


def load_twice(net: Any) -> None:
    net.encoder.layers[1].load_state_dict(net.encoder.layers[0].state_dict())


def fold(net: Any) -> None:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net[1], net[2] = fuse_conv_bn_eval(net[1], net[2]), nn.Identity()
    net[4], net[5] = fuse_conv_bn_eval(net[4], net[5]), nn.Identity()


def grow(net: Any) -> None:
    new = nn.Embedding(10, 48)
    new.weight[:8] = net.positions.weight
    net.positions = new


def prune(net: nn.Module) -> None:
    for p in matrices(net):
        p.mul_(p.abs() > p.abs().median())


def shuffle_rows(net: nn.Module) -> None:
    p = big(net)
    p.copy_(p[torch.randperm(len(p))])


def text(net: nn.Module) -> None:
    for p in net.parameters():
        p.copy_(torch.tensor([float(f"{v:.6g}") for v in p.flatten().tolist()]).reshape(p.shape))


def edit(choose: Callable[[Any], Any], change: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda net: change(choose(net))


ALL = ("conv", "attention", "lstm")
# The fault, the models that it is applied to, what the headline must match, and whether practitioners report it.
FAULTS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...], str, bool]] = {
    "another checkpoint": (lambda net: trained(kind_of(net), 1), ALL, "another checkpoint|differ", True),
    "not loaded": (fresh, ALL, "no checkpoint was loaded", True),
    "trained further": (trained_further, ALL, "UNRECOGNIZED", True),
    "moving average": (averaged, ALL, "UNRECOGNIZED", True),
    "before training": (lambda net: initial(kind_of(net)), ALL, "no checkpoint was loaded", True),
    "noise": (noisy, ALL, "UNRECOGNIZED", False),
    "head not loaded": (edit(linear, lambda head: head.reset_parameters()), ALL, "not loaded: .*head|not loaded: 12", True),
    "norms not loaded": (reset(nn.LayerNorm), ("conv", "attention"), "not loaded: .*all (ones|zeros)", True),
    "batch norms not loaded": (reset(nn.BatchNorm2d), ("conv",), "10 of .* not loaded: 2.weight.*all ones", True),
    "LSTM not loaded": (reset(nn.LSTM), ("lstm",), "4 of 7 tensors not loaded: rnn", True),
    "PReLU not loaded": (reset(nn.PReLU), ("lstm",), "not loaded: act.weight.*PReLU's 0.25", True),
    "embedding not loaded": (reset(nn.Embedding), ("attention",), "not loaded: positions.weight.*normal, std 1", True),
    "statistics reset": (
        lambda net: [net[i].reset_running_stats() for i in (2, 5)],
        ("conv",),
        "6 of .* not loaded: 2.running_mean",
        True,
    ),
    "biases lost": (
        lambda net: [p.zero_() for n, p in net.named_parameters() if n.endswith("bias")],
        ("attention",),
        "not loaded: .*all zeros",
        True,
    ),
    "training mode": (forwards_in_training_mode, ("conv",), "only the running statistics of 2 .*3 forwards", True),
    "to half": (lambda net: net.half(), ALL, "only the dtype changed: float32 -> float16.*the cast explains", True),
    "to bfloat16": (lambda net: net.bfloat16(), ALL, "only the dtype changed: float32 -> bfloat16", True),
    "to double": (lambda net: net.double(), ALL, "only the dtype changed: float32 -> float64.*the cast explains", True),
    "through half": (rounded(torch.float16), ALL, "were rounded to float16", True),
    "through bfloat16": (rounded(torch.bfloat16), ALL, "were rounded to bfloat16", True),
    "through float8": (rounded(torch.float8_e4m3fn), ALL, "were rounded to float8_e4m3fn", True),
    "text with 6 digits": (text, ALL, "differ by rounding", True),
    "int8 per channel": (quantized(8), ALL, r"quantized and dequantized .*int8 per output channel", True),
    "int4 in groups": (quantized(4, 32), ("attention", "conv"), "quantized and dequantized .*int4 in groups of 32", True),
    "int4 asymmetric": (asymmetric, ALL, "quantized and dequantized .*int4 in groups of 32", True),
    "prefix": (lambda net: nn.ModuleDict({"module": net, "other": nn.Identity()}), ALL, "gained the prefix", True),
    "transposed": (
        edit(lambda net: net.encoder.layers[0].self_attn.out_proj.weight, lambda p: p.copy_(p.T.clone())),
        ("attention",),
        "transposed",
        True,
    ),
    "conv transposed": (
        edit(lambda net: net[4].weight, lambda p: p.copy_(p.permute(1, 0, 2, 3).clone())),
        ("conv",),
        "permuted",
        True,
    ),
    "flipped kernels": (edit(lambda net: net[4].weight, lambda p: p.copy_(p.flip(3).clone())), ("conv",), "reversed", False),
    "rows shuffled": (shuffle_rows, ALL, "UNRECOGNIZED", False),
    "layers exchanged": (swap_conv_layers, ("attention",), "layers.0 and encoder.layers.1 were exchanged", True),
    "layer loaded twice": (load_twice, ("attention",), "layers.1 holds the values of encoder.layers.0", True),
    "folded": (fold, ("conv",), "UNRECOGNIZED", True),
    "merged": (low_rank, ("attention", "lstm"), "matrix of rank 4: a LoRA adapter", True),
    "grown": (grow, ("attention",), "positions.weight went from 8 to 10 rows", True),
    "pruned": (prune, ALL, "pruned: .*50% of the values", True),
    "scaled": (edit(big, lambda p: p.mul_(1.7)), ALL, "was multiplied by 1.7", False),
    "negated": (edit(big, lambda p: p.neg_()), ALL, "was multiplied by -1", False),
    "shifted": (edit(lambda net: linear(net).weight, lambda p: p.add_(1)), ALL, "was shifted by 1", True),
    "rows scaled": (edit(big, lambda p: p.mul_(torch.rand(len(p), 1) + 0.5)), ALL, "UNRECOGNIZED", False),
    "not finite": (edit(big, lambda p: p[1].fill_(float("nan"))), ALL, "values that are not finite", True),
    "one value": (edit(big, lambda p: p[3, 5].add_(0.5)), ALL, "1 of .* tensors changed", False),
    "one value rounded": (edit(big, lambda p: p[3, 5].copy_(p[3, 5].half().float())), ALL, "1 of .* tensors changed", False),
    "clipped": (edit(big, lambda p: p.clamp_(-0.1, 0.1)), ALL, "UNRECOGNIZED", False),
    "layer missing": (
        lambda net: setattr(net.encoder, "layers", net.encoder.layers[:1]),
        ("attention",),
        "tensors missing",
        True,
    ),
    "eps": (set_attribute("5", "eps", 1e-3), ("conv",), r"^model: eps of 5 \(BatchNorm2d\) is 0.001, not 1e-05", True),
    "all eps": (
        set_attributes(nn.LayerNorm, "eps", 1e-6),
        ("attention",),
        r"eps of encoder.layers.0.norm1 and 3 more \(LayerNorm\) is 1e-06, not 1e-05",
        True,
    ),
    "activation": (set_module("11", lambda _: nn.ReLU()), ("conv",), "11 is now ReLU, not GELU", True),
    "approximate GELU": (set_module("11", lambda _: nn.GELU("tanh")), ("conv",), "approximate of 11 .* is 'tanh'", True),
    "activation function": (
        set_attributes(nn.TransformerEncoderLayer, "activation", nn.functional.relu),
        ("attention",),
        "activation of encoder.layers.0 and 1 more .* is relu, not gelu",
        True,
    ),
    "stride": (set_attribute("4", "stride", (2, 2)), ("conv",), r"stride of 4 \(Conv2d\) is \(2, 2\), not \(1, 1\)", True),
    "padding": (set_attribute("4", "padding_mode", "reflect"), ("conv",), "padding_mode of 4 .* is 'reflect'", True),
    "heads": (
        set_attributes(nn.MultiheadAttention, "num_heads", 8),
        ("attention",),
        "num_heads of encoder.layers.0.self_attn and 1 more",
        True,
    ),
    "norm first": (
        set_attributes(nn.TransformerEncoderLayer, "norm_first", True),
        ("attention",),
        "norm_first of .* is True, not False",
        True,
    ),
    "pooling": (set_module("7", lambda _: nn.AdaptiveMaxPool2d(2)), ("conv",), "7 is now AdaptiveMaxPool2d", True),
    "bidirectional order": (set_attribute("rnn", "batch_first", False), ("lstm",), "batch_first of rnn", True),
}  # fmt: skip
UNCHANGED: dict[str, Callable[[Any], Any]] = {
    "copied": copy.deepcopy,
    "training mode": lambda net: net.train(),
    "frozen": lambda net: net.requires_grad_(False),
    "compiled": lambda net: torch.compile(net),
    "parallel": nn.DataParallel,
    "loaded": lambda net: (new := fresh(net)).load_state_dict(net.state_dict()) and new,
    "channels last": channels_last,
    "in place": set_attributes(nn.ReLU, "inplace", True),
    "used": lambda net: net(data()[0][:4]) is None or None,
    "gradients": with_gradients,
    "hooks": lambda net: net.register_forward_hook(lambda *args: None) and None,
    "negative zeros": lambda net: [p.copy_(torch.where(p == 0, -0.0, p)) for p in net.parameters()] and None,
}  # fmt: skip


def headline(kind: str, change: Callable[[Any], Any]) -> str | None:
    """Return what a change of a trained model is said to be; None if it still matches."""
    net = trained(kind)
    contents = model_entry.read_contents(net)
    entry = json.loads(json.dumps(model_entry.build_entry(contents)))
    samples = model_entry.sample_values(contents)
    torch.manual_seed(3)
    with torch.no_grad():
        changed = change(net)
    now = model_entry.read_contents(changed if isinstance(changed, nn.Module) else net)
    if model_entry.matches(entry, now):
        return None
    causes = checkpoint.diagnose(entry, now, samples)
    return checkpoint.describe_causes("model", causes)[0]


def judge(name: str, kind: str) -> tuple[str, str]:
    fault, _, words, _ = FAULTS[name]
    said = headline(kind, fault)
    if said is None:
        return "missed", ""
    is_unrecognized = bool(UNRECOGNIZED.search(said))
    if re.search(words, said) or (
        words == "UNRECOGNIZED" and is_unrecognized and ";" not in said.replace("; cause", "")
    ):
        return ("not recognized" if is_unrecognized else "named right"), said
    return ("not recognized" if is_unrecognized else "named wrong"), said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["the first model", pytest.param("the others", marks=pytest.mark.repetition)])
def test_the_score(part: str) -> None:
    models = slice(1) if part == "the first model" else slice(1, None)
    verdicts = {(name, kind): judge(name, kind) for name, (_, kinds, _, _) in FAULTS.items() for kind in kinds[models]}
    wrong = {case: each for case, each in verdicts.items() if each[0] in ("named wrong", "missed")}
    assert wrong == {}
    reported = [each for (name, _), (each, _) in verdicts.items() if FAULTS[name][3]]
    counts = Counter(reported)
    print(len(verdicts), Counter(each for each, _ in verdicts.values()), counts)
    assert counts["named right"] >= 0.7 * len(reported)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ALL)
def test_harmless_changes_match(kind: str) -> None:
    assert {name: headline(kind, change) for name, change in UNCHANGED.items()} == dict.fromkeys(UNCHANGED)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_random_changes_are_not_named(part: str) -> None:
    """No row of the table made these changes, so that none may be named."""
    net = trained("conv")
    generator = torch.Generator().manual_seed(0)
    names = [name for name, p in net.named_parameters() if p.dim() > 1]
    contents = model_entry.read_contents(net)
    entry = json.loads(json.dumps(model_entry.build_entry(contents)))
    samples = model_entry.sample_values(contents)
    named = []
    for i in take_part(range(400), part):
        p = net.get_parameter(names[i % len(names)])
        before, flat = p.detach().clone(), p.detach().reshape(len(p), -1)
        noise = torch.randn(flat.shape, generator=generator)
        changed = (
            flat + noise * 10.0 ** -(1 + i // 40 % 4),
            flat.clamp(-flat.abs().median(), flat.abs().median()),
            torch.where(noise > 1.5, flat * 1.5, flat),
            (flat + flat.roll(1, 1)) / 2,
            flat * (1 + noise * 0.1),
            flat.sign() * flat.abs() ** 1.1,
            torch.where(noise > 2, noise, flat),
            flat * 1.1 + 0.1,
            flat - flat.mean(1, keepdim=True),
        )[i % 9]
        p.data.copy_(changed.reshape(p.shape))
        causes = checkpoint.diagnose(entry, model_entry.read_contents(net), samples)
        named += [(i % 9, cause.words) for cause in causes if not UNRECOGNIZED.search(cause.words)]
        p.data.copy_(before)
    assert named == []
