"""Diagnoses of checkpoint faults, on a ResNet-like and a BERT-like model, and changes that are not faults."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import BertConfig, BertForSequenceClassification

from pytest_evalmode.lock import checkpoint, model_entry
from pytest_evalmode.lock.checkpoint import Cause


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        z: Tensor = (x + self.bn2(self.conv2(y))).relu()
        return z


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16), Block(16))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.layer1(self.bn1(self.conv1(x)).relu()).mean((2, 3)))
        return y


def bert() -> nn.Module:
    config = BertConfig(  # type: ignore[call-arg]
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    return BertForSequenceClassification(config)


BUILD: dict[str, Callable[[], nn.Module]] = {"resnet": ResNet, "bert": bert}


def trained(kind: str, seed: int = 0) -> nn.Module:
    """Return a model in which no tensor has initial values."""
    torch.manual_seed(seed)
    net = BUILD[kind]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3).add_(torch.randn_like(parameter).pow(3) * 0.02)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.1, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(1000)
    return net


Fault = Callable[[nn.Module], nn.Module | None]


def weights(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if p.dim() > 1]


def last_linear(net: nn.Module) -> nn.Linear:
    return [part for part in net.modules() if isinstance(part, nn.Linear)][-1]


def other_checkpoint(net: nn.Module) -> nn.Module:
    return trained("resnet" if isinstance(net, ResNet) else "bert", seed=1)


def trained_on(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter) * parameter.std())


def not_loaded(net: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return BUILD["resnet" if isinstance(net, ResNet) else "bert"]().eval()


def head_not_loaded(net: nn.Module) -> None:
    head = last_linear(net)
    new = nn.Linear(head.in_features, head.out_features)
    head.load_state_dict(new.state_dict())


def one_zeroed(net: nn.Module) -> None:
    weights(net)[1][1].zero_()


def norm_not_loaded(net: nn.Module) -> None:
    norm = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d | nn.LayerNorm))
    norm.reset_parameters()


def run_in_training_mode(net: nn.Module) -> None:
    net.train()
    for _ in range(3):
        net(torch.randn(4, 3, 16, 16))
    net.eval()


def statistics_averaged(net: nn.Module) -> None:
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.05)


def to_bfloat16(net: nn.Module) -> nn.Module:
    return net.to(torch.bfloat16)


def to_half(net: nn.Module) -> nn.Module:
    return net.half()


def through_half(net: nn.Module) -> nn.Module:
    return net.half().float()


def through_bfloat16(net: nn.Module) -> nn.Module:
    return net.to(torch.bfloat16).float()


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.temperature = 1.0
        self.act = nn.Softmax(-1)


def wrapped(net: nn.Module) -> nn.Module:
    return Wrapper(net)


def renamed(net: nn.Module) -> None:
    name, child = list(net.named_children())[-1]
    delattr(net, name)
    net.renamed = child


def transposed(net: nn.Module) -> None:
    weight = next(p for _, p in weights(net) if p.dim() in (2, 4) and p.shape[0] == p.shape[1])
    weight.copy_(weight.transpose(0, 1).clone())


def channels_swapped(net: nn.Module) -> None:
    weight = weights(net)[0][1]
    weight.copy_(weight.flip(1))


def shuffled(net: nn.Module) -> None:
    weight = weights(net)[1][1]
    weight.copy_(weight[torch.randperm(len(weight))])


def fake_quantized(net: nn.Module) -> None:
    for _, weight in weights(net):
        scale = weight.abs().max() / 127
        weight.copy_((weight / scale).round() * scale)


def fake_quantized_per_channel(net: nn.Module) -> None:
    for _, weight in weights(net):
        rows = weight.reshape(len(weight), -1)
        scale = rows.abs().amax(1, keepdim=True) / 127
        weight.copy_(((rows / scale).round() * scale).reshape(weight.shape))


def quantized(net: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})  # type: ignore[no-untyped-call, no-any-return]


def folded(net: Any) -> None:
    net.conv1, net.bn1 = fuse_conv_bn_eval(net.conv1, net.bn1), nn.Identity()
    for block in net.layer1:
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()


def with_lora(net: nn.Module) -> Any:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(net, LoraConfig(r=4, target_modules=["query", "value"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return adapted


def lora_merged(net: nn.Module) -> nn.Module:
    return with_lora(net).merge_and_unload()  # type: ignore[no-any-return]


def one_tensor(net: nn.Module) -> None:
    weights(net)[1][1].add_(0.1).mul_(1.1)


def multiplied(net: nn.Module) -> None:
    for _, weight in weights(net):
        weight.mul_(2)


def negated(net: nn.Module) -> None:
    weights(net)[1][1].neg_()


def pruned(net: nn.Module) -> None:
    for _, weight in weights(net):
        weight.mul_(weight.abs() > weight.abs().median())


def through_float8(net: nn.Module) -> None:
    for _, weight in weights(net):
        weight.copy_(weight.to(torch.float8_e4m3fn))


def layers_swapped(net: Any) -> None:
    layers = net.layer1 if isinstance(net, ResNet) else net.bert.encoder.layer
    layers[0], layers[1] = layers[1], layers[0]


def averaged(net: nn.Module) -> None:
    for parameter, other in zip(net.parameters(), other_checkpoint(net).parameters(), strict=True):
        parameter.lerp_(other, 0.4)


def one_nan(net: nn.Module) -> None:
    weights(net)[1][1].view(-1)[3] = torch.nan


def layer_dropped(net: Any) -> None:
    if isinstance(net, ResNet):
        net.layer1 = nn.Sequential(net.layer1[0])
    else:
        net.bert.encoder.layer = net.bert.encoder.layer[:1]


BOTH = ("resnet", "bert")
FAULTS: list[tuple[Fault, tuple[str, ...], list[str], str]] = [
    (other_checkpoint, BOTH, ["checkpoint"], "another checkpoint: "),
    (trained_on, BOTH, ["values"], r"differ by 1.0% of their size \(correlation .*\); cause not recognized"),
    (not_loaded, BOTH, ["unloaded"], "no checkpoint was loaded"),
    (head_not_loaded, BOTH, ["partial"], "2 of .* tensors not loaded: (fc|classifier).weight and 1 more"),
    (one_zeroed, BOTH, ["partial"], "1 of .* not loaded: .*all zeros"),
    (norm_not_loaded, BOTH, ["partial"], "not loaded: .*all zeros"),
    (
        run_in_training_mode,
        ("resnet",),
        ["statistics"],
        r"only the running statistics of 5 batch norms changed, by up to .*: 3 forwards in training mode since",
    ),
    (
        statistics_averaged,
        ("resnet",),
        ["statistics"],
        "only the running statistics of 5 batch norms changed, by up to 0.05",
    ),
    (to_bfloat16, BOTH, ["dtype"], "only the dtype changed: float32 -> bfloat16 in .*; the cast explains the values"),
    (to_half, BOTH, ["dtype"], "only the dtype changed: float32 -> float16 in .*; the cast explains the values"),
    (through_half, BOTH, ["rounded"], "were rounded to float16"),
    (through_bfloat16, BOTH, ["rounded"], "were rounded to bfloat16"),
    (wrapped, BOTH, ["renamed", "architecture"], ".* gained the prefix `module.`; 1 Softmax module added"),
    (renamed, BOTH, ["renamed"], "only the names changed: 2 tensors have another name"),
    (transposed, BOTH, ["permuted"], "transposed|permuted"),
    (channels_swapped, BOTH, ["permuted"], "reversed along dimension 1"),
    (shuffled, BOTH, ["values"], "1 of .* tensors changed: .*; cause not recognized"),
    (fake_quantized, BOTH, ["quantised"], "quantized and dequantized"),
    (fake_quantized_per_channel, BOTH, ["quantised"], "quantized and dequantized"),
    (quantized, BOTH, ["quantised"], "quantized: .* in qint8"),
    (folded, ("resnet",), ["values", "tensors"], "cause not recognized; 25 tensors missing .* and 5 tensors added"),
    (with_lora, ("bert",), ["renamed", "adapter"], "a LoRA adapter was added, not merged: 8 tensors"),
    (
        lora_merged,
        ("bert",),
        ["merged"],
        "query.weight and 3 more changed by a matrix of rank 4: a LoRA adapter was merged, or taken out",
    ),
    (one_tensor, BOTH, ["values"], "1 of .* tensors changed: .*, by up to"),
    (multiplied, BOTH, ["scaled"], "more were multiplied by 2"),
    (negated, BOTH, ["scaled"], "was multiplied by -1"),
    (pruned, BOTH, ["pruned"], "were pruned: 50% of the values are 0"),
    (through_float8, BOTH, ["rounded"], "were rounded to float8_e4m3fn"),
    (layers_swapped, BOTH, ["exchanged"], r"layer1?.0 and .*layer1?.1 were exchanged \(\d+ tensors\)"),
    (averaged, BOTH, ["values"], "cause not recognized"),
    (one_nan, BOTH, ["not finite"], r".* has values that are not finite \(1\)"),
    (layer_dropped, BOTH, ["tensors"], "tensors missing"),
]
TABLE = [
    pytest.param(fault, kind, causes, words, id=f"{fault.__name__}-{kind}")
    for fault, kinds, causes, words in FAULTS
    for kind in kinds
]


def locked(net: nn.Module) -> tuple[dict[str, Any], Any]:
    contents = model_entry.read_contents(net)
    entry = json.loads(json.dumps(model_entry.build_entry(contents)))
    return entry, model_entry.sample_values(contents)


def diagnose(net: nn.Module, entry: dict[str, Any], samples: Any) -> list[Cause]:
    return checkpoint.diagnose(entry, model_entry.read_contents(net), samples)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("fault", "kind", "kinds", "words"), TABLE)
def test_a_fault_gets_its_diagnosis(fault: Fault, kind: str, kinds: list[str], words: str) -> None:
    net = trained(kind)
    lock, samples = locked(net)
    with torch.no_grad():
        net = fault(net) or net
    assert not model_entry.matches(lock, model_entry.read_contents(net))
    causes = diagnose(net, lock, samples)
    headline, _ = checkpoint.describe_causes("model (Net)", causes)
    assert ([cause.kind for cause in causes], bool(re.search(words, headline))) == (kinds, True), headline


def to_channels_last(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def compiled(net: Any) -> Any:
    return torch.compile(net)


def loaded(net: nn.Module) -> nn.Module:
    other = BUILD["resnet" if isinstance(net, ResNet) else "bert"]()
    other.load_state_dict(net.state_dict())
    return other


UNCHANGED: dict[str, Fault] = {
    "nothing": lambda net: None,
    "a copy": copy.deepcopy,
    "another memory layout": to_channels_last,
    "training mode": lambda net: net.train(),
    "no gradients": lambda net: net.requires_grad_(False),
    "compiled": lambda net: compiled(net),
    "data parallel": lambda net: nn.DataParallel(net),
    "loaded again": lambda net: loaded(net),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
@pytest.mark.parametrize("kind", BOTH)
def test_an_unchanged_model_matches_its_lock(change: Fault, kind: str) -> None:
    net = trained(kind)
    lock, _ = locked(net)
    changed = change(net)
    net = net if changed is None else changed
    assert model_entry.matches(lock, model_entry.read_contents(net))


def test_without_samples_the_diagnosis_is_shorter_but_correct() -> None:
    net = trained("resnet")
    lock, _ = locked(net)
    assert [cause.kind for cause in diagnose(other_checkpoint(net), lock, {})] == ["values"]
    assert "no stored values" in diagnose(net.half(), lock, {})[0].words


def test_a_module_without_tensors_that_moved_is_reported() -> None:
    was = nn.ModuleDict({"fc": nn.Linear(4, 4), "a": nn.ReLU()})
    now = nn.ModuleDict({"fc": was["fc"], "b": nn.ReLU()})
    lock, samples = locked(was)
    (cause,) = diagnose(now, lock, samples)
    assert cause.words == "1 ReLU module removed (a); 1 ReLU module added (b)"


def test_a_head_with_one_output_is_not_loaded_with_its_bias() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    for parameter in net.parameters():
        parameter.data.mul_(1.3).add_(torch.randn_like(parameter).pow(3) * 0.02)
    lock, samples = locked(net)
    last_linear(net).reset_parameters()
    (cause,) = diagnose(net, lock, samples)
    assert cause.words.startswith("2 of 6 tensors not loaded: 4.weight and 1 more")


def test_tensors_with_different_counts_of_values_that_are_not_finite_share_a_sentence() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    lock, samples = locked(net)
    with torch.no_grad():
        for count, layer in enumerate(net, 1):
            layer.weight.view(-1)[:count] = torch.inf
    (cause,) = diagnose(net, lock, samples)
    assert cause.words == "0.weight and 1 more have values that are not finite (1, 2)"


@pytest.mark.parametrize("values", [[[0.1, 0.2], [-0.3, 0.4]], [[0.0, 1.0] * 8] * 4, [[-1.0, 0.0, 0.5, 1.0] * 4] * 4])
def test_few_values_that_lie_on_a_grid_are_not_named_quantized(values: list[list[float]]) -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(len(values[0]), len(values), bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(values))
        lock, samples = locked(net)
        change = 1e-3 * torch.tensor(values).sign()
        net[1].weight.copy_(torch.tensor(values) + change)
        (cause,) = diagnose(net, lock, samples)
    assert cause.kind != "quantised", cause.words


def test_the_modules_without_tensors_that_moved_are_listed() -> None:
    was = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    lock, samples = locked(was)
    (cause,) = diagnose(nn.Sequential(was[0], nn.ReLU(), nn.Dropout()), lock, samples)
    assert cause.tensors == ("2",)
    (cause,) = diagnose(was[:1], lock, samples)
    assert cause.tensors == ("1",)
