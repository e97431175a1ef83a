"""Rules about changes that persist after a test: in shared models, and in torch's global state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.wording import first_and_more, plural
from pytest_evalmode.trace import Hooks, Leak, Site, Trace


@rule(
    "model-leaked",
    level="strict",
    fires_when="the test left a shared model different: train/eval flags, requires_grad, .grad, hooks, a forward "
    "replaced on the instance, a submodule replaced, a plain attribute set by the test",
    remedy="restore it (try/finally, a context manager, handle.remove()), or use a copy of the model",
)
def model_leaked(trace: Trace) -> Iterator[Violation]:
    for model in dict.fromkeys(leak.model for leak in trace.leaks if leak.model is not None):
        leaks = [leak for leak in trace.leaks if leak.model == model]
        is_eval = all(f".{leak.name}".endswith(".training") and leak.after is False for leak in leaks)
        yield _leak_violation(trace, leaks, _EVAL_IN_FIXTURE if is_eval else "")


_EVAL_IN_FIXTURE = "call eval() where the shared model is created (its fixture): then every test gets it in eval mode"


@rule(
    "global-leaked",
    level="strict",
    fires_when="the test left torch's global state different: grad mode, default dtype and device, deterministic and "
    "cuDNN/TF32 flags, autocast, thread count. Restoring what it was when the session began is not a leak",
    remedy="set it in a context manager, or in a fixture that restores it",
)
def global_leaked(trace: Trace) -> Iterator[Violation]:
    leaks = [leak for leak in trace.leaks if leak.model is None]
    if leaks:
        yield _leak_violation(trace, leaks, _SUSPENDED if all(leak.suspended for leak in leaks) else "")


_SUSPENDED = (
    "do not yield inside this `with`, as the generator leaves it only when it ends: enter it around the call of the "
    "model; or close() the generator"
)


def _leak_violation(trace: Trace, leaks: list[Leak], remedy: str) -> Violation:
    """Return a violation for the leaks of one model, or of torch's global state."""
    model = leaks[0].model
    lines = [_line_of(leak, trace) for leak in leaks]
    subjects = [f"torch {leak.name}" if model is None else f"{model}.{leak.name}" for leak in leaks]
    sentences = _sentences(leaks)
    at, *others = dict.fromkeys(line for line in lines if line is not None) or (None,)
    more = f" (and {len(sentences) - _MAX_SENTENCES} more)" if len(sentences) > _MAX_SENTENCES else ""
    return Violation(
        model=model,
        subjects=tuple(subjects),
        message=sentences[0] + (f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""),
        finding="; ".join(sentences[:_MAX_SENTENCES]) + more,
        remedy=remedy,
        at=at,
        count=len(leaks),
        details={
            "leaks": {name: f"{leak.before} -> {leak.after}" for name, leak in zip(subjects, leaks, strict=True)},
            **({"also_at": [str(line) for line in others]} if others else {}),
        },
    )


def _line_of(leak: Leak, trace: Trace) -> Site | None:
    """Return the line that made the change, or else that of the first operation that makes such changes."""
    name = {"grad": "backward()", "requires_grad": "requires_grad_()"}.get(leak.name.rpartition(".")[2])
    operations = (*trace.gradients, *trace.writes)
    return leak.at or next((each.at for each in operations if each.name == name and leak.model in each.models), None)


_MAX_SENTENCES = 3


def _sentences(leaks: list[Leak]) -> list[str]:
    """Describe leaks, those of the same kind in one sentence."""
    names_by_template: dict[str, list[str]] = {}
    for template, name in chain.from_iterable(map(_templates, leaks)):
        names_by_template.setdefault(template, []).append(name)
    return [
        template.format(
            first_and_more(names), n=plural(len(names), "parameter"), was="was" if len(names) == 1 else "were"
        )
        for template, names in names_by_template.items()
    ]


def _templates(leak: Leak) -> Iterator[tuple[str, str]]:
    """Yield the sentence templates for a leak, each with the name to insert."""
    owner, _, attribute = f"{leak.model}.{leak.name}".rpartition(".")
    if leak.model is None:
        yield f"torch {{}} {_changed(leak)}", leak.name
    elif attribute == "training":
        yield f"{{}} {{was}} left in {'training' if leak.after else 'eval'} mode", owner
    elif attribute == "requires_grad":
        yield f"requires_grad was turned {'on' if leak.after else 'off'} for {{}}", owner
    elif attribute == "grad":
        verb = "cleared from" if leak.after is None else "accumulated into"
        yield f"gradients were {verb} {{n}} ({{}})", owner
    elif isinstance(leak.before, Hooks) and isinstance(leak.after, Hooks):
        before, after = leak.before.keys(), leak.after.keys()
        noun = attribute.removesuffix("s").replace("_", " ")
        for verb, hooks in (("added to", after - before), ("removed from", before - after)):
            if hooks:
                yield f"{plural(len(hooks), noun)} {'was' if len(hooks) == 1 else 'were'} {verb} {{}}", owner
    else:
        yield f"{{}} {_changed(leak)}", f"{owner}.{attribute}"


def _changed(leak: Leak) -> str:
    another = "another " if str(leak.before) == str(leak.after) else ""
    text = f"changed from {leak.before} to {another}{leak.after}"
    return text.replace("{", "{{").replace("}", "}}")  # for str.format()
