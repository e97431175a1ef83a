"""Rules about what a test leaves behind: on the models it shares with others, and in torch itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.wording import first_and_more, plural
from pytest_evalmode.trace import Leak, Site, Trace


@rule(
    "model-leaked",
    level="strict",
    fires_when="the test left a shared model different: train/eval flags, requires_grad, .grad, hooks",
    remedy="put it back (try/finally, a context manager, handle.remove()), or work on a copy",
)
def model_leaked(trace: Trace) -> Iterator[Violation]:
    for model in dict.fromkeys(leak.model for leak in trace.leaks if leak.model is not None):
        leaks = [leak for leak in trace.leaks if leak.model == model]
        yield _violation(
            model, [f"{model}.{leak.name}" for leak in leaks], leaks, [_line(leak, trace) for leak in leaks]
        )


@rule(
    "global-leaked",
    level="strict",
    fires_when="the test left torch's global state different",
    remedy="set it in a context manager, or put it back in a fixture's teardown",
)
def global_leaked(trace: Trace) -> Iterator[Violation]:
    leaks = [leak for leak in trace.leaks if leak.model is None]
    if leaks:
        yield _violation(None, [f"torch {leak.name}" for leak in leaks], leaks, [leak.at for leak in leaks])


def _violation(model: str | None, subjects: list[str], leaks: list[Leak], lines: Sequence[Site | None]) -> Violation:
    found = _sentences(model, leaks)
    at, *others = dict.fromkeys(line for line in lines if line is not None) or (None,)
    more = f" (and {len(found) - _MOST_TOLD} more)" if len(found) > _MOST_TOLD else ""
    return Violation(
        model=model,
        subjects=tuple(subjects),
        message=found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
        finding="; ".join(found[:_MOST_TOLD]) + more,
        at=at,
        count=len(leaks),
        details={
            "leaks": {name: f"{leak.before} -> {leak.after}" for name, leak in zip(subjects, leaks, strict=True)},
            **({"also_at": [str(line) for line in others]} if others else {}),
        },
    )


def _line(leak: Leak, trace: Trace) -> Site | None:
    """The line that set a model otherwise, or that did what left something on it."""
    by = {"grad": "backward()", "requires_grad": "requires_grad_()"}.get(leak.name.rpartition(".")[2])
    uses = (*trace.gradients, *trace.writes)
    return leak.at or next((use.at for use in uses if use.name == by and leak.model in use.models), None)


_MOST_TOLD = 3


def _sentences(model: str | None, leaks: list[Leak]) -> list[str]:
    """What the test did, leaks of one kind in one sentence."""
    kinds: dict[str, list[str]] = {}
    for leak in leaks:
        owner = ".".join(filter(None, (model, leak.name.rpartition(".")[0])))
        for kind, name in (
            _kinds(leak, owner) if model is not None else [(f"torch {leak.name} {_now(leak)}", leak.name)]
        ):
            kinds.setdefault(kind, []).append(name)
    return [_sentence(kind, names) for kind, names in kinds.items()]


def _kinds(leak: Leak, owner: str) -> Iterator[tuple[str, str]]:
    """The sentences that tell a leak of a model, each with the name that it is about."""
    flag = leak.name.rpartition(".")[2]
    if flag == "training":
        yield f"{{}} {{was}} left in {'training' if leak.after == 'True' else 'eval'} mode", owner
    elif flag == "requires_grad":
        yield f"requires_grad was turned {'on' if leak.after == 'True' else 'off'} for {{}}", owner
    elif flag == "grad":
        done = "cleared from" if leak.after == "None" else "accumulated into"
        yield f"gradients were {done} {{n}} ({{}})", owner
    elif flag.endswith("hooks"):
        before, after = (set(_HOOK.findall(told)) for told in (leak.before, leak.after))
        noun = flag.removesuffix("s").replace("_", " ")
        for done, hooks in (("added to", after - before), ("removed from", before - after)):
            if hooks:
                yield f"{plural(len(hooks), noun)} {'was' if len(hooks) == 1 else 'were'} {done} {{}}", owner
    else:
        yield f"{{}} {_now(leak)}", f"{owner}.{flag}"


_HOOK = re.compile(r"\S+ #\d+")


def _now(leak: Leak) -> str:
    return f"was {leak.before} and is {leak.after}"


def _sentence(kind: str, names: list[str]) -> str:
    was = "was" if len(names) == 1 else "were"
    return kind.format(first_and_more(names), n=plural(len(names), "parameter"), was=was)
