"""Three questions that a test may ask of a model: plain functions, which assert.

Each runs a copy of the model under `inference()`, on a fork of torch's random generators: what it does leaves no trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pytest_evalmode.evaluation import inference
from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models import modes
from pytest_evalmode.rules.wording import first_and_more, plural

_PADDING = 3


@dataclass(slots=True)
class _Run:
    """What a model gave, and what each of its modules did, in the order in which they ended."""

    output: dict[str, Tensor]
    modules: list[tuple[str, dict[str, Tensor]]] = field(default_factory=list)


def assert_repeatable(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """The model gives the same again, bit by bit: at once, and after other inputs, which a cache might remember.

    Raises AssertionError, which names the first module that gave otherwise.
    """
    with _probed(model, "assert_repeatable") as run:
        first = run(*inputs, **named)
        _assert_same(first, run(*inputs, **named), "a second time")
        others, named_others = _mapped((inputs, named), _other)
        run(*others, **named_others)
        _assert_same(first, run(*inputs, **named), "again after other inputs")


def assert_batch_independent(
    model: nn.Module, batch: Any, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """Each sample gives what it gives alone, in another order, and, of tokenised text, with more padding.

    `batch` is a tensor, a sequence of the model's arguments or a mapping of them by name, with samples along the first
    dimension.  What is close is the same: kernels for other sizes add in another order.  Raises AssertionError, which
    names the sample that moved, and the first module in which it did.
    """
    if (rtol is None) != (atol is None):
        raise ValueError(f"assert_batch_independent(): rtol={rtol!r}, atol={atol!r}: give both, or neither")
    size = _size(batch)
    with _probed(model, "assert_batch_independent") as run:
        whole = _call(run, batch)
        close = _Closeness(rtol, atol)
        for i in range(size):
            _assert_rows(whole, _call(run, _pick(batch, [i], size)), [i], size, close, "alone")
        order = list(reversed(range(size)))
        _assert_rows(whole, _call(run, _pick(batch, order, size)), order, size, close, "in a batch in reverse order")
        padded = _padded(batch)
        if padded is not None:
            rows = list(range(size))
            _assert_rows(whole, _call(run, padded), rows, size, close, f"with {_PADDING} more of padding")


def assert_eval_matters(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """The model gives otherwise in training mode: a test over it would notice a forgotten `eval()`.

    Raises AssertionError, which says what in it depends on the mode, if anything does.
    """
    with _probed(model, "assert_eval_matters") as run:
        told = run(*inputs, **named)
    with _copied(model, "assert_eval_matters") as (trained, run), torch.no_grad():
        trained.train()
        trained_told = run(*inputs, **named)
    if _first_difference(told.output, trained_told.output) is not None:
        return
    sensitive = [
        f"{path} ({modules.type_name(part)})" for path, part in modules.walk(trained) if modes.is_sensitive(part)
    ]
    ran = {path for path, _ in trained_told.modules}
    if not sensitive:
        why = "nothing in it depends on the mode"
    elif not any(name.partition(" ")[0] in ran for name in sensitive):
        why = f"{first_and_more(sensitive)} did not run"
    else:
        why = f"{first_and_more(sensitive)} changed nothing"
    raise AssertionError(f"{modules.type_name(model)} gives the same in training mode as in eval mode: {why}")


@contextmanager
def _probed(model: nn.Module, probe: str) -> Iterator[Callable[..., _Run]]:
    """Runs a copy of a model as it is meant to be run."""
    with _copied(model, probe) as (copied, run), inference(copied):
        yield run


@contextmanager
def _copied(model: nn.Module, probe: str) -> Iterator[tuple[nn.Module, Callable[..., _Run]]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{probe}(model): {model!r:.80} is a {type(model).__name__}; it takes a torch.nn.Module")
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{probe}(): {modules.type_name(model)} cannot be copied, so that it could not be left as it is"
        ) from error
    devices = sorted({t.device.index or 0 for t in copied.parameters() if t.device.type == "cuda"})
    names = {id(part): path for path, part in modules.walk(copied)}
    with torch.random.fork_rng(devices=devices):

        def run(*inputs: Any, **named: Any) -> _Run:
            found: list[tuple[str, dict[str, Tensor]]] = []

            def keep(module: nn.Module, _: object, output: object) -> None:
                if id(module) in names:
                    found.append((names[id(module)], _tensors(output)))

            # For all modules at once: a hook of a module's own would turn torch's fast paths off.
            handle = register_module_forward_hook(keep)
            try:
                own, own_named = _mapped((inputs, named), _fresh)
                return _Run(_tensors(copied(*own, **own_named)), found)
            finally:
                handle.remove()

        yield copied, run


def _tensors(value: object, path: str = "") -> dict[str, Tensor]:
    """The tensors of an output by their paths in it, as they are now."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    items: Sequence[tuple[str, object]] = []
    if isinstance(value, Mapping):
        items = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    elif hasattr(value, "__dataclass_fields__"):
        items = [(f"{path}.{name}", getattr(value, name)) for name in value.__dataclass_fields__]
    return {inner: tensor for name, item in items for inner, tensor in _tensors(item, name).items()}


def _first_difference(was: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str | None:
    """How two outputs differ, bit by bit, in words."""
    if was.keys() != now.keys():
        return "another structure"
    for path, old in was.items():
        new = now[path]
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{old.dtype} {tuple(old.shape)} -> {new.dtype} {tuple(new.shape)}"
        if not torch.equal(torch.nan_to_num(old), torch.nan_to_num(new)) or not torch.equal(old.isnan(), new.isnan()):
            far = (new.double() - old.double()).abs() if not old.is_complex() else (new - old).abs()
            sample = f", in sample {_sample(far)} first" if far.dim() > 1 and len(far) > 1 else ""
            return f"by up to {float(far.max()):.3g}{sample}"
    return None


def _sample(far: Tensor) -> int:
    return int((far.flatten(1) > 0).any(1).nonzero()[0])


def _assert_same(first: _Run, second: _Run, when: str) -> None:
    how = _first_difference(first.output, second.output)
    if how is None:
        return
    for (path, old), (_, new) in zip(first.modules, second.modules, strict=False):
        differs = _first_difference(old, new)
        if differs is not None:
            raise AssertionError(
                f"the output differs {when}, {how}; {_module(path)} was the first to differ ({differs})"
            )
    raise AssertionError(f"the output differs {when}, {how}")


def _module(path: str) -> str:
    return path or "the model itself"


@dataclass(frozen=True, slots=True)
class _Closeness:
    """What is the same: as close as asked for, else as the rounding of other sizes allows."""

    rtol: float | None
    atol: float | None

    def far(self, was: Tensor, now: Tensor) -> Tensor:
        """Which elements are not the same."""
        if not (was.is_floating_point() or was.is_complex()):
            return was != now
        if self.rtol is not None and self.atol is not None:
            return ~torch.isclose(now, was, rtol=self.rtol, atol=self.atol, equal_nan=True)
        loose = torch.finfo(was.dtype).eps ** 0.5
        finite = was[was.isfinite()].abs()
        scale = float(finite.max()) if finite.numel() else 0.0
        return ~torch.isclose(now, was, rtol=loose, atol=loose * scale, equal_nan=True)


def _assert_rows(whole: _Run, part: _Run, rows: list[int], size: int, close: _Closeness, when: str) -> None:
    """The rows of a batch are what they are in another batch."""
    moved = _moved(whole.output, part.output, rows, size, close)
    if moved is None:
        return
    sample, how = moved
    for (path, old), (_, new) in zip(whole.modules, part.modules, strict=False):
        inside = _moved(old, new, rows, size, close)
        if inside is not None:
            name = _module(path)
            raise AssertionError(
                f"sample {sample} gives otherwise {when}, {how}; {name} was the first to differ, in sample {inside[0]}"
            )
    raise AssertionError(f"sample {sample} gives otherwise {when}, {how}")


def _moved(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], rows: list[int], size: int, close: _Closeness
) -> tuple[int, str] | None:
    """The first sample that differs, and how far; what has no samples along its first dimension does not count."""
    for path, old in whole.items():
        new = part.get(path)
        if old.dim() == 0 or len(old) != size:
            continue
        if new is None or new.dim() != old.dim() or len(new) != len(rows):
            return rows[0], "in what it gives"
        picked = old[rows]
        if new.shape != picked.shape:
            if any(n < o for n, o in zip(new.shape, picked.shape, strict=True)):
                return rows[0], f"in shape {tuple(new.shape[1:])}, not {tuple(picked.shape[1:])}"
            new = new[tuple(slice(0, n) for n in picked.shape)]  # of more padding more comes out
        far = close.far(picked, new)
        if bool(far.any()):
            sample = int(far.reshape(len(rows), -1).any(1).nonzero()[0])
            step = (
                (new[sample].double() - picked[sample].double()).abs()
                if not new.is_complex()
                else (new - picked)[sample].abs()
            )
            return rows[sample], f"by up to {float(step.max()):.3g}"
    return None


def _call(run: Callable[..., _Run], batch: Any) -> _Run:
    if isinstance(batch, Mapping):
        return run(**batch)
    return run(*batch) if isinstance(batch, list | tuple) else run(batch)


def _size(batch: Any) -> int:
    tensors = _tensors(dict(batch) if isinstance(batch, Mapping) else batch)
    size = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
    if size < 2:
        raise ValueError(
            f"assert_batch_independent(model, batch): a batch of {plural(size, 'sample')}; it takes tensors with at "
            "least two samples along their first dimension"
        )
    return size


def _pick(batch: Any, rows: list[int], size: int) -> Any:
    """Some samples of a batch."""
    return _mapped(batch, lambda tensor: tensor[rows] if tensor.dim() and len(tensor) == size else tensor)


def _fresh(tensor: Tensor) -> Tensor:
    """A copy: the model may use its inputs up."""
    return tensor.detach().clone()


def _other(tensor: Tensor) -> Tensor:
    """One of the same kind that is another: its elements in reverse order, or larger by one."""
    turned = tensor.flip(tuple(range(tensor.dim())))
    return turned + 1 if turned.is_floating_point() and torch.equal(turned, tensor) else turned


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of tensors with the function applied to each."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, function) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_mapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _padded(batch: Any) -> dict[str, Any] | None:
    """A tokenised batch with more padding on the right; None of what cannot be padded so."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        return None
    mask = batch["attention_mask"]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    # Padding on the left would move what follows it; positions that are given say where they are.
    if not bool((mask[:, 0] != 0).all()) or "position_ids" in batch:
        return None
    return {
        name: nn.functional.pad(value, (0, _PADDING), value=0)
        if isinstance(value, Tensor) and value.shape == mask.shape
        else value
        for name, value in batch.items()
    }
