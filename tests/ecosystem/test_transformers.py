"""Transformers and the libraries around it: trainer, pipelines, accelerate, PEFT, sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import peft
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn

from tests.nets import Net, batch, only, rules, watching

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad film"
TINY: dict[str, Any] = {
    "vocab_size": len(WORDS.split()),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
FORGOTTEN = {"train-mode"}


@pytest.fixture
def model() -> Any:
    """Make a model in training mode."""
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY)).train()


@pytest.fixture
def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(WORDS.split())})


def inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[2, 5, 6, 8, 3]])}


# --- transformers.Trainer, which switches modes and autograd


ROWS = [{"input_ids": [2, 5, word, 8, 3], "labels": word % 2} for word in (6, 7, 6, 7)]


def trainer_of(model: Any, folder: Path, kind: type[Any] = transformers.Trainer) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, num_train_epochs=1, save_strategy="no"
    )
    return kind(model=model, args=arguments, train_dataset=ROWS, eval_dataset=ROWS)


class TrainsInEvaluation(transformers.Trainer):
    """Switches to training mode during evaluation."""

    def prediction_step(self, model: nn.Module, *arguments: Any, **more: Any) -> Any:
        model.train()
        return super().prediction_step(model, *arguments, **more)


def test_inference_by_a_trainer_is_clean(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path)
    with watching(model) as g:
        trainer.predict(ROWS)
        trainer.evaluate()
    assert not rules(g)
    assert g.window.models[0].forwards == 2


def test_a_trainer_leaves_the_model_in_eval_mode(model: Any, tmp_path: Path) -> None:
    """Under strict rules this is the only violation, and only of the first prediction."""
    trainer = trainer_of(model, tmp_path)
    with watching(model, strict=True) as g:
        trainer.predict(ROWS)
    assert only(g, "model-leaked").message.endswith("were left in eval mode")
    with watching(model, strict=True) as g:
        trainer.predict(ROWS)
    assert not rules(g)


def test_a_trainer_that_switches_to_training_mode_is_reported(model: Any, tmp_path: Path) -> None:
    with watching() as g:
        trainer_of(model, tmp_path, TrainsInEvaluation).predict(ROWS)
    at = only(g, "train-mode").at
    assert at is not None
    assert at.source == "return super().prediction_step(model, *arguments, **more)"


def test_training_by_a_trainer_is_reported(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path)
    with watching() as g:
        trainer.train()
    assert rules(g) == {"train-mode", "grad-mode", "state-mutated"}
    with watching() as g, torch.no_grad():
        trainer.model(**inputs())  # called directly after training
    assert rules(g) == FORGOTTEN
    with watching() as g:
        with g.paused():
            trainer.train()
        trainer.predict(ROWS)
    assert not rules(g)


# --- pipelines


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_a_pipeline_is_clean_in_eval_mode(model: Any, tokenizer: Any, task: str) -> None:
    pipe = transformers.pipeline(task, model=model.eval(), tokenizer=tokenizer, device="cpu")  # type: ignore[call-overload]
    with watching(strict=True) as g:
        pipe(["a good film", "a bad film"], batch_size=2)
    assert not rules(g)
    pipe.model.train()
    with watching() as g:
        pipe("a good film")
    assert rules(g) == FORGOTTEN


# --- accelerate: a prepared model, and one whose weights are loaded and offloaded in each forward


def prepare(model: nn.Module) -> nn.Module:
    prepared: nn.Module = accelerate.Accelerator(cpu=True).prepare(model)
    return prepared


def prepare_mixed_precision(model: nn.Module) -> nn.Module:
    """Replace the forward by one that runs under autocast and returns full precision."""
    accelerate.state.AcceleratorState._reset_state()
    prepared: nn.Module = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    accelerate.state.AcceleratorState._reset_state()
    return prepared


def offload(model: nn.Module) -> nn.Module:
    prepared: nn.Module = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return prepared


@pytest.mark.parametrize("wrap", [prepare, prepare_mixed_precision, offload])
def test_a_model_prepared_by_accelerate(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(Net())
    with watching(strict=True) as g, torch.no_grad():
        for _ in range(2):
            model.eval()(batch())
    assert not rules(g)
    with watching() as g, torch.no_grad():
        model.train()(batch())
    assert "train-mode" in rules(g)
    with watching() as g:
        model.eval()(batch())
    assert rules(g) == {"grad-mode"}


# --- PEFT: adapters around and inside a model


@pytest.fixture
def adapted_model(model: Any) -> Any:
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.5, target_modules=["query", "value"])
    return peft.get_peft_model(model, lora)


def test_adapters_in_eval_mode_are_clean(adapted_model: Any) -> None:
    adapted_model.eval()
    with watching(adapted_model, strict=True) as g, torch.no_grad():
        adapted_model(**inputs())
        with adapted_model.disable_adapter():
            adapted_model(**inputs())
        adapted_model.set_adapter("default")
        adapted_model(**inputs())
    assert not rules(g)


def test_an_adapter_in_training_mode_is_reported(adapted_model: Any) -> None:
    with watching() as g, torch.no_grad():
        adapted_model(**inputs())
    assert rules(g) == FORGOTTEN
    adapted_model.eval()
    for name, module in adapted_model.named_modules():
        module.train(name.endswith("lora_dropout.default"))
    with watching() as g, torch.no_grad():
        adapted_model(**inputs())
    assert all("lora_dropout" in subject for subject in only(g, "train-mode").subjects)


def test_an_adapter_with_autograd_is_reported(adapted_model: Any) -> None:
    adapted_model.eval()
    with watching() as g:
        adapted_model(**inputs())
    assert rules(g) == {"grad-mode"}


def test_a_merged_adapter_is_clean(adapted_model: Any) -> None:
    merged = adapted_model.eval().merge_and_unload()
    with watching(strict=True) as g, torch.no_grad():
        merged(**inputs())
    assert not rules(g)


# --- sentence-transformers: a Sequential whose `encode()` switches to eval mode, and whose forward does not


@pytest.fixture
def sentences(model: Any, tokenizer: Any, tmp_path: Path) -> Any:
    model.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = Transformer(str(tmp_path))
    return SentenceTransformer(modules=[words, Pooling(16)], device="cpu")


def test_encoding_sentences_is_clean(sentences: Any) -> None:
    with watching(sentences) as g:
        sentences.train().encode(["a good film", "a bad film"])
    assert not rules(g)
    with watching(sentences, strict=True) as g:
        sentences.encode(["a good film", "a bad film"])
    assert not rules(g)


def test_a_sentence_transformer_in_training_mode_is_reported(sentences: Any) -> None:
    features = sentences.tokenize(["a good film"])
    sentences.train()
    with watching() as g, torch.no_grad():
        sentences(features)
    assert rules(g) == FORGOTTEN
