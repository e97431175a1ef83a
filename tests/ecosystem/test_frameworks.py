"""Metrics that are modules, and trainers that run the model for the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.nets import Net, batch, only, rules, watching

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their imports
    torchmetrics = pytest.importorskip("torchmetrics")
    lightning: Any = import_module("lightning") if find_spec("lightning") else None

pytestmark = pytest.mark.filterwarnings("ignore")
Metric = Callable[[], Any]


def labels(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


# --- torchmetrics: a metric is always in training mode, and keeps its state in non-persistent buffers


def accuracy(**arguments: Any) -> Any:
    return torchmetrics.Accuracy(task="multiclass", num_classes=2, **arguments)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "compared with itself": lambda: accuracy() + accuracy(),
    "collection": lambda: torchmetrics.MetricCollection({"all": accuracy(), "mean": accuracy(average="macro")}),
    "per class": lambda: torchmetrics.ClasswiseWrapper(accuracy(average=None)),
    "confusion": lambda: torchmetrics.ConfusionMatrix("multiclass", num_classes=2),
    "curve, of lists": lambda: torchmetrics.AUROC("multiclass", num_classes=2),
}
every_metric = pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)


@every_metric
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_a_metric_next_to_the_model_is_clean(make: Metric, grad: Callable[[], Any]) -> None:
    model, metric = Net().eval(), make()
    with watching(model) as g, grad():
        for _ in range(3):
            x = batch()
            metric(model(x).softmax(-1), labels(x))
        metric.compute()
        metric.reset()
        metric.update(model(x).softmax(-1), labels(x))
    assert not rules(g)
    assert [(facts.name, facts.forwards) for facts in g.window.models] == [("Net", 4)]


@every_metric
@torch.no_grad()
def test_a_watched_metric_is_clean(make: Metric) -> None:
    metric, x = make(), batch()
    with watching(metric) as g:
        metric(torch.rand(8, 2).softmax(-1), labels(x))
    assert not rules(g)


@pytest.mark.parametrize("make", [torchmetrics.MeanMetric, torchmetrics.SumMetric, torchmetrics.CatMetric])
@torch.no_grad()
def test_an_aggregation_metric_is_clean(make: Metric) -> None:
    metric = make()
    with watching() as g:
        for _ in range(3):
            metric(Net().eval()(batch()).mean())
        metric.compute()
    assert not rules(g)


class WithMetric(nn.Module):
    """Contains its metric, as a LightningModule does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.accuracy = accuracy()
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.accuracy(logits, labels(x))
        self.loss(logits, labels(x))
        return logits


@torch.no_grad()
def test_a_metric_inside_the_model_is_clean() -> None:
    model = WithMetric().eval()
    model.accuracy.train()
    model.loss.train()
    with watching(model, strict=True) as g:
        model(batch())
        model(batch())
    assert not rules(g)


@torch.no_grad()
def test_a_metric_does_not_hide_a_forgotten_eval() -> None:
    metric = accuracy()
    with watching() as g:
        x = batch()
        metric(Net()(x), labels(x))
    assert rules(g) == {"train-mode", "state-mutated"}
    assert {violation.model for violation in g.violations} == {"Net"}


# --- lightning: the trainer switches modes and autograd


@pytest.fixture
def trainer(tmp_path: Any) -> Iterator[Any]:
    if lightning is None:
        pytest.skip("lightning is not installed")
    threads = torch.get_num_threads()
    yield lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.set_num_threads(threads)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    x = batch(8, 4)
    return DataLoader(TensorDataset(x, labels(x)), batch_size=4)


def module(body: Callable[[], nn.Module] = Net, in_each_step: Callable[[nn.Module], object] | None = None) -> Any:
    """Make a LightningModule around a net; its author applies `in_each_step` to the net in every step."""

    class Lit(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = body()
            self.accuracy = accuracy()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

        def step(self, batch: Any) -> Tensor:
            x, y = batch
            if in_each_step is not None:
                in_each_step(self.net)
            logits = self(x)
            self.accuracy(logits, y)
            self.log("accuracy", self.accuracy)
            return nn.functional.cross_entropy(logits, y)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.step(batch)

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", self.step(batch))

        def test_step(self, batch: Any, index: int) -> None:
            self.step(batch)

        def predict_step(self, batch: Any, index: int) -> Tensor:
            logits: Tensor = self(batch[0])
            return logits

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Lit()


@pytest.mark.parametrize("task", ["predict", "test", "validate"])
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
def test_inference_by_a_trainer_is_clean(trainer: Any, task: str, watched: bool) -> None:
    model = module()
    with watching(*[model] if watched else []) as g:
        getattr(trainer, task)(model, loader())
    assert not rules(g)
    (facts,) = g.window.models
    assert facts.forwards >= 2
    assert model.net.training


def test_training_by_a_trainer_in_a_pause_is_clean(trainer: Any) -> None:
    model = module()
    with watching(model) as g:
        with g.paused():
            trainer.fit(model, loader())
        trainer.test(model, loader())
    assert not rules(g)


def test_training_by_a_trainer_is_reported(trainer: Any) -> None:
    model = module()
    with watching(model) as g:
        trainer.fit(model, loader())
    assert rules(g) == {"train-mode", "grad-mode", "state-mutated"}
    assert all("evalmode.paused()" in violation.remedy for violation in g.violations)


def test_a_model_called_directly_after_training_is_reported(trainer: Any) -> None:
    model = module()
    trainer.fit(model, loader())
    with watching() as g, torch.no_grad():
        model(batch())
    assert rules(g) == {"train-mode", "state-mutated"}
    with watching() as g, torch.no_grad():
        model.eval()(batch())
    assert not rules(g)


@pytest.mark.parametrize(
    ("in_each_step", "expected"),
    [
        (lambda net: net.train(), {"train-mode", "state-mutated"}),
        (lambda net: net.drop.train(), {"train-mode"}),
        (lambda net: net.head.bias.data.add_(1), {"state-mutated"}),
        (lambda net: net.eval(), set()),
    ],
)
def test_mistakes_in_a_test_step_are_reported(
    trainer: Any, in_each_step: Callable[[nn.Module], object], expected: set[str]
) -> None:
    with watching() as g:
        trainer.test(module(in_each_step=in_each_step), loader())
    assert rules(g) == expected


def test_dropout_that_ignores_the_mode_is_reported(trainer: Any) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x))

    with watching() as g:
        trainer.predict(module(Noisy), loader())
    violation = only(g, "random-forward")
    assert violation.cause is not None
    assert violation.cause.source == "return nn.functional.dropout(super().forward(x))"


# --- the trainer of transformers


@pytest.fixture
def hf_trainer(tmp_path: Any) -> Any:
    """Make a trainer for a model with one layer."""
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=16, **sizes)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    return transformers.Trainer(transformers.BertForSequenceClassification(config), arguments, train_dataset=SENTENCES)


SENTENCES = [{"input_ids": torch.arange(5), "labels": torch.tensor(i % 2)} for i in range(8)]


def test_training_by_the_transformers_trainer_is_reported(hf_trainer: Any) -> None:
    with watching(hf_trainer.model) as g:
        hf_trainer.train()
    assert rules(g) == {"train-mode", "grad-mode", "state-mutated"}
    assert all("evalmode.paused()" in violation.remedy for violation in g.violations)


def test_the_transformers_trainer_trains_in_a_pause_and_predicts(hf_trainer: Any) -> None:
    with watching(hf_trainer.model) as g:
        with g.paused():
            hf_trainer.train()
        hf_trainer.predict(SENTENCES)
    assert not rules(g)
