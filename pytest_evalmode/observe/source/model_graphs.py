"""Models that are graphs: TorchScript, FX and `torch.export`.

Their type says nothing of what they do, and for an exported or traced one neither does `training`: the graph does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.jit import ScriptModule

from pytest_evalmode.observe.source.draw_calls import DRAWING_FUNCTIONS

_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")


def is_exported(module: nn.Module) -> bool:
    """Whether this is a graph of operators, as `torch.export` makes it.

    It says `training=True` whatever it was made from, and its `eval()` raises; both mean nothing.
    """
    graph = module.graph if isinstance(module, GraphModule) else vars(module).get("graph")
    return isinstance(graph, Graph) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes if node.op == "call_function"
    )


def reads_training(module: ScriptModule) -> bool:
    """Whether a scripted forward reads `training`; that of a traced one is a constant of its graph."""
    graph = _graph(module, "graph")
    return graph is not None and any(
        node.hasAttribute("name") and node.s("name") == "training" for node in graph.findAllNodes("prim::GetAttr")
    )


def describe_batch_stats(module: nn.Module) -> Iterator[str]:
    """How the graph of an eval-mode module normalises with the batch's statistics, one sentence a batch norm."""
    if isinstance(module, GraphModule):
        yield from _fx_batch_norms(module)
    elif isinstance(module, ScriptModule):
        yield from _script_batch_norms(module)


def may_draw(module: nn.Module) -> bool:
    """Whether a TorchScript graph has an operator that draws random numbers."""
    graph = _graph(module, "inlined_graph") if isinstance(module, ScriptModule) else None
    return graph is not None and any(f"aten::{name}" in str(graph) for name in DRAWING_FUNCTIONS)


def _fx_batch_norms(module: GraphModule) -> Iterator[str]:
    for node in module.graph.nodes:
        name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""
        if "batch_norm" not in name and node.target is not F.batch_norm:
            continue
        normalized = node.normalized_arguments(module, normalize_to_only_use_kwargs=True)
        arguments = normalized.kwargs if normalized else node.kwargs
        if arguments.get("training") is True and _sees_the_batch(node.args[0]):
            yield f"{name or 'F.batch_norm'} is in the graph with training=True"


def _sees_the_batch(node: object) -> bool:
    """Whether a value comes from an input: weight standardisation calls batch_norm too, on weights."""
    waiting, seen = [node], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Node) or value in seen:
            continue
        if value.op == "placeholder":
            return True
        seen.add(value)
        waiting.extend(value.all_input_nodes)
    return False


def _script_batch_norms(module: ScriptModule) -> Iterator[str]:
    for part in module.modules():
        if getattr(part, "original_name", "") in _BATCH_NORMS and getattr(part, "running_mean", None) is None:
            kept = getattr(part, "track_running_stats", False)
            how = "they were set to None" if kept else "track_running_stats=False"
            yield f"it was scripted without running statistics ({how})"
    graph = _graph(module, "inlined_graph")
    for node in graph.findAllNodes("aten::batch_norm") if graph is not None else ():
        training = list(node.inputs())[5]
        if training.node().kind() == "prim::Constant" and training.toIValue() is True:
            yield "aten::batch_norm is in the graph with training=True"


def _graph(module: ScriptModule, name: str) -> Any:
    """The graph of a scripted forward; None where there is none: a module may have other methods alone."""
    try:
        return getattr(module, name, None)
    except RuntimeError:
        return None
