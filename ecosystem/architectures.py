"""One public architecture: what the guard says of clean and of careless inference, beside what a plain run shows."""

from __future__ import annotations

import copy
import hashlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields
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
    """What one call left behind.

    Attributes:
        outputs: Fingerprint of the outputs.
        error: The text of the exception that the call raised.
        generators: Fingerprint of the generators of torch, Python and NumPy after the call.
        changes: Fingerprint of the saved tensors that the call changed; empty if there are none.
        drew: Whether the call drew from torch's generator.
        requires_grad: Whether an output requires grad.
        functions: The functions of torch after the call.
        rules: The rules that the guard says were broken.
        seconds: Processor time.
    """

    outputs: str
    error: str
    generators: str
    changes: str
    drew: bool
    requires_grad: bool
    functions: tuple[int, ...]
    rules: frozenset[str]
    seconds: float

    @property
    def effects(self) -> tuple[str, str, str]:
        """What a change of the mode would change."""
        return self.outputs + self.error, self.generators, self.changes


@dataclass(frozen=True)
class Result:
    """What the guard says of an architecture, and where that differs from a run without the guard.

    The defaults are what the guard says of most architectures.

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
    clean: tuple[str, ...] = ()
    strict: tuple[str, ...] = ()
    training: tuple[str, ...] = ("train-mode",)
    recording: tuple[str, ...] = ("grad-mode",)
    deviations: tuple[str, ...] = ()
    plain_seconds: float = 0
    guarded_seconds: float = 0

    def as_row(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


class Subject:
    """An architecture that is built once and called in fresh copies."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture
        self._inputs = architecture.inputs()

    @cached_property
    def _model(self) -> nn.Module:
        return self._build()

    def _build(self) -> nn.Module:
        seed()
        model = self._architecture.build()
        if any(map(nn.parameter.is_lazy, model.parameters())):  # the first call creates the parameters
            with torch.no_grad():
                self._architecture.call(model, **copy.deepcopy(self._inputs))
        return model

    @property
    def has_untracked_norm(self) -> bool:
        """Whether a batch norm keeps no running statistics, and so uses those of the batch in eval mode too."""
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        return any(isinstance(module, norms) and module.running_mean is None for module in self._model.modules())

    def _copy(self) -> nn.Module:
        try:
            return copy.deepcopy(self._model)
        except Exception:
            return self._build()

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
        seed()
        generator = torch.get_rng_state()
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
            generators=generators(),
            changes=changes(self._model.state_dict(), model.state_dict()),
            drew=not torch.equal(generator, torch.get_rng_state()),
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
    if plain.drew:
        expected.add("random-forward")
    if plain.changes:
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
        clean=tuple(sorted(guarded.rules)),
        strict=tuple(sorted(strict.rules - guarded.rules)),
        training=tuple(sorted(guarded_training.rules)),
        recording=tuple(sorted(guarded_recording.rules)),
        deviations=tuple(deviations),
        plain_seconds=round(plain.seconds + training.seconds + recording.seconds, 4),
        guarded_seconds=round(guarded.seconds + guarded_training.seconds + guarded_recording.seconds, 4),
    )


def seed() -> None:
    """Seed the generators of torch, Python and NumPy."""
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)


def generators() -> str:
    """Return a digest of the states of the generators of torch, Python and NumPy."""
    state = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state(legacy=True)
    with numpy.printoptions(threshold=sys.maxsize):
        return hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()


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


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return a fingerprint of what differs between two state dicts; empty if nothing does."""
    digest = hashlib.blake2b(digest_size=16)
    differing = [name for name in sorted({**before, **after}) if not _same(before.get(name), after.get(name))]
    for name in differing:
        digest.update(f"{name} {fingerprint(after.get(name))}".encode())
    return digest.hexdigest() if differing else ""


def _same(before: object, after: object) -> bool:
    """Return whether two values have the same tensors; equal tensors need no fingerprint."""
    with suppress(Exception):  # lazy, quantized and wrapped tensors cannot be compared
        if isinstance(before, Tensor) and isinstance(after, Tensor) and torch.equal(before, after):
            return before.dtype == after.dtype
    return fingerprint(before) == fingerprint(after)


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
