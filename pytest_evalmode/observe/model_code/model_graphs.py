"""Models that are graphs: TorchScript, FX and `torch.export`. Their type reveals nothing about their forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.model_code.draw_calls import DRAWING_FUNCTIONS
from pytest_evalmode.observe.private_api import OpOverload, ScriptModule

_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")


def is_exported(module: nn.Module) -> bool:
    """Return whether a module is a graph of operators, as `torch.export` makes it.

    Such a module always reports `training=True`, and its `eval()` raises.
    """
    graph = module.graph if isinstance(module, GraphModule) else vars(module).get("graph")
    return isinstance(graph, Graph) and any(
        isinstance(node.target, OpOverload) for node in graph.nodes if node.op == "call_function"
    )


def exported_ids(parts: Iterable[nn.Module]) -> set[int]:
    """Return the ids of those modules that are exported graphs, and of all modules inside them."""
    return {id(inner) for part in parts if is_exported(part) for inner in modules.all_modules(part)}


def reads_training(module: ScriptModule) -> bool:
    """Return whether a scripted forward reads `training`; a traced forward stores the mode as a constant."""
    graph = _graph(module, "graph")
    return graph is not None and any(
        node.hasAttribute("name") and node.s("name") == "training" for node in graph.findAllNodes("prim::GetAttr")
    )


def describe_batch_stats(module: nn.Module) -> Iterator[str]:
    """Yield a sentence per batch norm of a graph in eval mode that normalizes with the batch's own statistics."""
    if isinstance(module, ScriptModule):
        yield from _script_batch_stats(module)
    for node in module.graph.nodes if isinstance(module, GraphModule) else ():
        name = str(node.target) if isinstance(node.target, OpOverload) else ""
        if "batch_norm" not in name and node.target is not F.batch_norm:
            continue
        normalized = node.normalized_arguments(module, normalize_to_only_use_kwargs=True)
        arguments = normalized.kwargs if normalized else node.kwargs
        if arguments.get("training") is True and _depends_on_input(node.args[0]):
            yield f"{name or 'F.batch_norm'} is in the graph with training=True"


def may_draw(module: nn.Module) -> bool:
    """Return whether a TorchScript graph contains an operator that draws random numbers."""
    text = str(_graph(module, "inlined_graph")) if isinstance(module, ScriptModule) else ""
    return any(f"aten::{name}" in text for name in DRAWING_FUNCTIONS)


def _depends_on_input(node: object) -> bool:
    """Return whether a value is computed from an input; weight standardization calls `batch_norm` on weights."""
    pending, seen = [node], set()
    while pending:
        value = pending.pop()
        if not isinstance(value, Node) or value in seen:
            continue
        if value.op == "placeholder":
            return True
        seen.add(value)
        pending.extend(value.all_input_nodes)
    return False


def _script_batch_stats(module: ScriptModule) -> Iterator[str]:
    for part in module.modules():
        if getattr(part, "original_name", "") in _BATCH_NORMS and getattr(part, "running_mean", None) is None:
            yield f"it was scripted without running statistics ({missing_statistics_reason(part)})"
    graph = _graph(module, "inlined_graph")
    for node in graph.findAllNodes("aten::batch_norm") if graph is not None else ():
        training = list(node.inputs())[5]
        if training.node().kind() == "prim::Constant" and training.toIValue() is True:
            yield "aten::batch_norm is in the graph with training=True"


def missing_statistics_reason(norm: nn.Module) -> str:
    """Return why a batch norm has no running statistics."""
    return "they were set to None" if getattr(norm, "track_running_stats", False) else "track_running_stats=False"


def _graph(module: ScriptModule, name: str) -> Any:
    """Return the graph of a scripted forward, or None for a module that has only other scripted methods."""
    try:
        return getattr(module, name, None)
    except RuntimeError:
        return None
