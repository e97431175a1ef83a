"""One public architecture: what the guard says of clean and of careless inference, beside what a plain run shows."""

from __future__ import annotations

import copy
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from pytest_evalmode import Guard, HygieneError, guard


@dataclass(frozen=True)
class Architecture:
    """A model that can be built without downloads, and one call of it.

    Args:
        name: Unique within its library.
        build: Returns the model, with random weights.
        inputs: Returns the keyword arguments of the call.
        call: Runs the model.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Any]]
    call: Callable[..., object] = lambda model, **inputs: model(**inputs)


@dataclass(frozen=True)
class Run:
    """What one call left behind; `error` is the text of the exception that it raised."""

    outputs: str
    error: str
    generator: str
    state: str
    state_before: str
    generator_before: str
    requires_grad: bool
    functions: tuple[int, ...]
    rules: frozenset[str]
    seconds: float = field(compare=False)

    @property
    def effects(self) -> tuple[str, str, str]:
        """What a change of the mode would change."""
        return self.outputs + self.error, self.generator, self.state


@dataclass(frozen=True)
class Result:
    """What the guard says of an architecture, and where that differs from a run without the guard.

    Attributes:
        clean: Rules broken in eval mode without autograd.
        strict: The strict rules broken by the same call.
        training: Rules broken after a forgotten `eval()`.
        recording: Rules broken after a forgotten `no_grad()`.
        deviations: Where the guard and the plain runs disagree.
        plain_seconds: Processor time of the calls without the guard.
        guarded_seconds: Processor time of the same calls with it.
    """

    name: str
    clean: list[str]
    strict: list[str]
    training: list[str]
    recording: list[str]
    deviations: list[str]
    plain_seconds: float
    guarded_seconds: float

    def as_row(self) -> dict[str, Any]:
        """Return the fields that are not empty."""
        return {name: value for name, value in asdict(self).items() if value or name == "name"}


class Subject:
    """An architecture that is built once and called in fresh copies."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._inputs = architecture.inputs()

    @cached_property
    def _model(self) -> nn.Module:
        seed()
        return self._architecture.build()

    @property
    def has_untracked_norm(self) -> bool:
        """Whether a batch norm keeps no running statistics, and so uses those of the batch in eval mode too."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        return any(isinstance(module, norms) and module.running_mean is None for module in self._model.modules())

    def _copy(self) -> nn.Module:
        try:
            return copy.deepcopy(self._model)
        except Exception:
            seed()
            return self._architecture.build()

    def run(self, *, training: bool = False, recording: bool = False, guarded: dict[str, Any] | None = None) -> Run:
        """Call a copy of the model.

        Args:
            training: Leave the model in training mode.
            recording: Leave autograd on.
            guarded: Arguments of `guard()`; without them, the call is not guarded.
        """
        model, inputs = self._copy(), copy.deepcopy(self._inputs)
        with suppress(NotImplementedError):  # an exported graph has no mode
            model.train(training)
        state_before = fingerprint(model.state_dict())
        seed()
        generator_before = fingerprint(torch.get_rng_state())
        observer: AbstractContextManager[Guard | None] = nullcontext() if guarded is None else guard(**guarded)
        g, outputs, text, start = None, None, "", time.process_time()
        try:
            with suppress(HygieneError), observer as g, torch.set_grad_enabled(recording):
                outputs = self._architecture.call(model, **inputs)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        return Run(
            outputs=fingerprint(outputs),
            error=text,
            generator=fingerprint(torch.get_rng_state()),
            state=fingerprint(model.state_dict()),
            state_before=state_before,
            generator_before=generator_before,
            requires_grad=any(tensor.requires_grad for tensor in tensors(outputs)),
            functions=functions(),
            rules=frozenset(violation.rule for violation in g.violations) if g else frozenset(),
            seconds=seconds,
        )


class CannotRunError(Exception):
    """An architecture that cannot be built or called here, with or without the guard."""


def check(architecture: Architecture) -> Result:
    """Run an architecture with and without the guard, carefully and carelessly.

    Raises:
        CannotRunError: The plain call failed.
    """
    try:
        subject = Subject(architecture)
        first = subject.run()  # may fill caches of the process
    except Exception as error:
        raise CannotRunError(f"{type(error).__name__}: {error}") from error
    if first.error:
        raise CannotRunError(first.error)
    plain, guarded = subject.run(), subject.run(guarded={})
    strict = subject.run(guarded={"strict": True})
    training, guarded_training = subject.run(training=True), subject.run(training=True, guarded={})
    recording, guarded_recording = subject.run(recording=True), subject.run(recording=True, guarded={})
    again = subject.run()

    expected = {"batch-stats"} if subject.has_untracked_norm else set[str]()
    if plain.generator != plain.generator_before:
        expected.add("random-forward")
    if plain.state != plain.state_before:
        expected.add("state-mutated")
    deviations = [
        *(f"{rule} without a cause" for rule in sorted(guarded.rules - expected)),
        *(f"{rule} is missed" for rule in sorted(expected - guarded.rules)),
    ]
    if not training.error and training.effects != plain.effects and "train-mode" not in guarded_training.rules:
        deviations.append("a forgotten eval() is missed")
    if not recording.error and recording.requires_grad != ("grad-mode" in guarded_recording.rules):
        deviations.append("a forgotten no_grad() is " + ("missed" if recording.requires_grad else "reported falsely"))
    if again.effects == plain.effects:  # else the architecture itself is not deterministic
        pairs = {
            "": (plain, guarded),
            "under strict": (plain, strict),
            "in training mode": (training, guarded_training),
            "with autograd": (recording, guarded_recording),
        }
        deviations += [
            f"the guard changes the result {name}".rstrip()
            for name, (without, with_guard) in pairs.items()
            if without.effects != with_guard.effects
        ]
    if {run.functions for run in (guarded, strict, guarded_training, guarded_recording)} != {plain.functions}:
        deviations.append("a patched function was left behind")
    return Result(
        name=architecture.name,
        clean=sorted(guarded.rules),
        strict=sorted(strict.rules - guarded.rules),
        training=sorted(guarded_training.rules),
        recording=sorted(guarded_recording.rules),
        deviations=deviations,
        plain_seconds=round(plain.seconds + training.seconds + recording.seconds, 4),
        guarded_seconds=round(guarded.seconds + guarded_training.seconds + guarded_recording.seconds, 4),
    )


def seed() -> None:
    """Seed the generators of torch, Python and NumPy."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def tensors(value: object, depth: int = 8) -> Iterator[Tensor]:
    """Yield the tensors of nested outputs: containers, data classes and plain objects."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):  # a quantized tensor that is made of others
            names, _ = value.__tensor_flatten__()
            yield from tensors([getattr(value, name) for name in names], depth)
        else:
            yield value
    elif depth and not isinstance(value, nn.Module):
        parts: Any = ()
        if isinstance(value, Mapping):
            parts = value.values()
        elif isinstance(value, list | tuple):
            parts = value
        elif hasattr(value, "__dict__"):
            parts = vars(value).values()
        for part in parts:
            yield from tensors(part, depth - 1)


def fingerprint(value: object) -> str:
    """Return a digest of all tensors of a value, bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors(value):
        if nn.parameter.is_lazy(tensor):
            continue
        dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
        if dense.is_quantized:
            dense = dense.int_repr()
        dense = dense.resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b"")
    return digest.hexdigest()


def functions() -> tuple[int, ...]:
    """Return the identities of the functions of torch that anybody could patch."""
    owners = (nn.Module, Tensor, torch.autograd, torch.random, torch.nn.functional)
    return tuple(id(value) for owner in owners for name, value in sorted(vars(owner).items()) if callable(value))
