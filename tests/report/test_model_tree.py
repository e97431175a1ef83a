"""Model trees of the HTML report: marked modules, collapsed branches, at most one screen."""

from __future__ import annotations

from typing import Any

from pytest_evalmode.report.model_tree import MAX_ROWS, model_trees
from pytest_evalmode.trace import ForwardCall, ModuleInfo, Observation, Site, TensorChange, Trace, WatchedModel

BLOCKS = [(f"layer{i}", "Sequential") for i in range(1, 5)]
PARTS = [("", "ResNet"), ("conv1", "Conv2d"), ("bn1", "BatchNorm2d"), ("relu", "ReLU")]
for layer, kind in BLOCKS:
    PARTS.append((layer, kind))
    for block in range(6):
        PARTS += [(f"{layer}.{block}", "Bottleneck")]
        PARTS += [(f"{layer}.{block}.conv{i}", "Conv2d") for i in (1, 2, 3)]
        PARTS += [(f"{layer}.{block}.bn{i}", "BatchNorm2d") for i in (1, 2, 3)]
PARTS.append(("fc", "Linear"))
TYPES = dict(PARTS)


def training(paths: list[str], since: Site | None = None) -> ForwardCall:
    observations = tuple(Observation(ModuleInfo("model", path, TYPES[path]), since=since) for path in paths)
    return ForwardCall(ran=ModuleInfo("model", "", "ResNet"), at=None, modules=len(PARTS), training=observations)


def changed(path: str, **facts: Any) -> TensorChange:
    return TensorChange("model", path, "values", **facts)


def tree(*calls: ForwardCall, changes: tuple[TensorChange, ...] = ()) -> dict[str, Any]:
    model = WatchedModel("model", "ResNet", 0, 0, 1, modules=tuple(PARTS))
    return model_trees(Trace(models=(model,), calls=calls, changes=changes))["model"]


def rows(node: dict[str, Any], depth: int = 0) -> list[str]:
    marks = "; ".join(" ".join(filter(None, mark)) for mark in node["marks"])
    name = "  " * depth + " ".join(filter(None, (node["name"], node["type"])))
    text = f"{name}: {marks or ('' if node['rows'] else 'clean')}".removesuffix(": ")
    return [text, *(row for child in node["rows"] for row in rows(child, depth + 1))]


def test_a_clean_model_has_no_tree() -> None:
    model = WatchedModel("model", "ResNet", 0, 0, 1, modules=tuple(PARTS))
    assert model_trees(Trace(models=(model,))) == {}
    quiet = ForwardCall(ran=ModuleInfo("model", "", "ResNet"), at=None, modules=3)
    assert model_trees(Trace(models=(model,), calls=(quiet,))) == {}


def test_modules_show_the_line_that_switched_them_if_there_are_several_lines() -> None:
    one, other = (training([path], Site("test_it.py", line)) for path, line in (("bn1", 9), ("fc", 12)))
    text = "\n".join(rows(tree(one, other)))
    assert "bn1 BatchNorm2d: training since test_it.py:9" in text
    assert "fc Linear: training since test_it.py:12" in text


def test_a_marked_module_is_expanded_and_its_clean_neighbors_are_collapsed() -> None:
    root = tree(
        training(["layer3.2.bn1"], Site("test_it.py", 9)),
        changes=(changed("layer3.2.bn1.running_mean", elements=4, numel=8, max_abs=0.25),),
    )
    assert rows(root) == [
        "model ResNet",
        "  conv1 … layer2: clean",
        "  layer3 Sequential",
        "    0 … 1 Bottleneck: clean",
        "    2 Bottleneck",
        "      conv1 … conv3 Conv2d: clean",
        "      bn1 BatchNorm2d: training; changed running_mean  max |Δ| 0.25, 4 of 8 elements",
        "      bn2 … bn3 BatchNorm2d: clean",
        "    3 … 5 Bottleneck: clean",
        "  layer4 … fc: clean",
    ]


def test_a_branch_with_many_marks_is_summarized() -> None:
    norms = [path for path, kind in PARTS if kind == "BatchNorm2d"]
    root = tree(training(norms), changes=tuple(changed(f"{path}.running_mean", max_abs=0.5) for path in norms))
    (layer,) = [row for row in root["rows"] if row["name"] == "layer2"]
    assert layer["marks"] == [("training", "18 modules"), ("changed", "18 tensors: running_mean")]
    assert (layer["modules"], layer["rows"]) == (43, [])
    assert len(rows(root)) <= MAX_ROWS


def test_many_similar_neighbors_become_one_row() -> None:
    parts = (("", "Net"), *((str(i), "Linear") for i in range(1000)))
    observations = tuple(Observation(ModuleInfo("net", path, kind)) for path, kind in parts[1:])
    call = ForwardCall(ran=ModuleInfo("net", "", "Net"), at=None, modules=1001, training=observations)
    trace = Trace(models=(WatchedModel("net", "Net", 0, 0, 1, modules=parts),), calls=(call,))
    (row,) = model_trees(trace)["net"]["rows"]
    assert (row["name"], row["type"], row["times"]) == ("0 … 999", "Linear", 1000)
    assert row["marks"] == [("training", "1000 modules")]


def test_a_tree_always_fits_on_one_screen() -> None:
    parts = [("", "Net")]
    for i in range(300):
        parts += [(f"m{i}", f"Type{i}"), (f"m{i}.a", "A"), (f"m{i}.b", "B")]
    observations = tuple(Observation(ModuleInfo("net", path, kind)) for path, kind in parts[1:])
    call = ForwardCall(ran=ModuleInfo("net", "", "Net"), at=None, modules=1001, training=observations)
    trace = Trace(models=(WatchedModel("net", "Net", 0, 0, 1, modules=tuple(parts)),), calls=(call,))
    root = model_trees(trace)["net"]
    assert len(rows(root)) <= MAX_ROWS + 1
    assert root["rows"][-1]["times"] == 300 - MAX_ROWS + 1


def test_unregistered_modules_come_last() -> None:
    unregistered = Observation(ModuleInfo("model", "layer1.<Dropout>", "Dropout"))
    call = ForwardCall(
        ran=ModuleInfo("model", "", "ResNet"), at=None, modules=3, unregistered=(unregistered,), draws=(unregistered,)
    )
    last = rows(tree(call))
    assert "    <Dropout> Dropout: drew random numbers; unregistered" in last
    assert last[-1] == "  layer2 … fc: clean"


def test_a_model_without_a_list_of_modules_shows_the_marked_ones() -> None:
    model = WatchedModel("net", "Net", 2, 8, 0)
    change = TensorChange("net", "body.fc.weight", "values", elements=1, numel=4, max_abs=1.0)
    assert rows(model_trees(Trace(models=(model,), changes=(change,)))["net"]) == [
        "net Net",
        "  body",
        "    fc: changed weight  max |Δ| 1, 1 of 4 elements",
    ]


def test_a_tensor_of_the_model_itself_marks_the_root() -> None:
    assert rows(tree(changes=(changed("scale"),)))[0] == "model ResNet: changed scale"
