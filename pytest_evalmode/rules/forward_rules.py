"""Rules about how a forward ran: the mode of its modules, autograd, batch statistics, random numbers."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.call_groups import (
    calls_by_model,
    count_runs,
    model_names,
    module_names,
    observations_by_model,
    unique_by_module,
    violation_of_modules,
)
from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.training_calls import (
    first_backward,
    first_optimizer_step,
    format_operation,
    operation_details,
    pause_remedy,
)
from pytest_evalmode.rules.wording import plural, times, title
from pytest_evalmode.trace import ForwardCall, Observation, Site, Trace


@rule(
    "train-mode",
    fires_when="a model's forward ran while a module in it was in training mode",
    remedy="call model.eval() before the first forward",
)
def train_mode(trace: Trace) -> Iterator[Violation]:
    drew = {call.ran.model for call in trace.calls if any(finding.is_graph for finding in call.draws)}
    for calls in calls_by_model(trace, lambda call: call.training and not call.graphs & drew):
        model = calls[0].ran.model
        calls.sort(key=lambda call: model not in call.graphs)  # who made a graph comes before who ran it
        found = unique_by_module(finding for call in calls for finding in call.training)
        # Batch norm and dropout say more than the containers and linear layers that merely share their flag.
        telling = [f for f in found if f.module.mode_dependent] or found
        why = f": {telling[0].why}" if telling[0].why else ""
        since = _since(telling)
        of = f" of {plural(calls[0].modules, 'module')}" if len(telling) > 1 else ""
        were = "was" if len(telling) == 1 else "were"
        step = first_optimizer_step(trace, model)
        yield violation_of_modules(
            calls,
            telling,
            message=f"{model_names(calls)} {_what_became(calls)} in training mode",
            finding=f"{module_names(telling)}{of} {were} in training mode{why}",
            remedy=_register_it(telling[0]) or (pause_remedy(step) if step else _eval_it(calls, found)),
            since=since,
            details={**({"since": str(since)} if since else {}), **operation_details(trained=step)},
            never_intended=bool(step or telling[0].why) or any(call.all_training for call in calls),
            train=tuple(f.module.path for f in found),
        )


@rule(
    "grad-mode",
    fires_when="a model's forward recorded autograd",
    remedy="call it under torch.inference_mode() or torch.no_grad()",
)
def grad_mode(trace: Trace) -> Iterator[Violation]:
    for calls, found in observations_by_model(trace, lambda call: (call.autograd,) if call.autograd else ()):
        model = calls[0].ran.model
        step, use = first_optimizer_step(trace, model), first_backward(trace, model)
        purpose = f"; {use.name} used the graph" if use else ""
        yield violation_of_modules(
            calls,
            found,
            message=f"{model_names(calls)} ran {times(count_runs(calls))} with autograd recording{purpose}",
            finding=f"{title(found[0].module)} recorded autograd: {found[0].why}"
            + (f"; the graph was used by {format_operation(use)}" if use else ""),
            remedy=(pause_remedy(step) if step else _MEANT if use else _leave_it_off(found[0])),
            details=operation_details(trained=step, used=use),
            because=("train-mode",) if step else (),
            never_intended=bool(step),
        )


@rule(
    "batch-stats",
    fires_when="a batch norm in eval mode normalised with the batch's own statistics",
    remedy="keep running statistics (track_running_stats=True); trace or export the model after model.eval()",
)
def batch_stats(trace: Trace) -> Iterator[Violation]:
    for calls, found in observations_by_model(trace, lambda call: call.batch_stats):
        yield violation_of_modules(
            calls,
            found,
            message=f"{model_names(calls)} ran {times(count_runs(calls))} on the statistics of the batch",
            finding=f"{module_names(found)} used the batch's own statistics in eval mode: {found[0].why}",
            remedy=_EXPORT_TRACKED if found[0].is_graph else "",
            since=_made(trace, calls),
            because=("train-mode",),
        )


@rule(
    "random-forward",
    fires_when="a forward in eval mode drew from torch's global random generators",
    remedy="let it depend on self.training (F.dropout takes training=), or draw from a torch.Generator of its own",
)
def random_forward(trace: Trace) -> Iterator[Violation]:
    for calls, found in observations_by_model(trace, lambda call: call.draws):
        why = f": {found[0].why}" if found[0].why else ""
        mode = "" if any(f.training for f in found) else " in eval mode"
        yield violation_of_modules(
            calls,
            found,
            message=f"{model_names(calls)} drew random numbers in {plural(count_runs(calls), 'forward')}{mode}",
            finding=f"{module_names(found)} drew random numbers{mode}{why}",
            remedy=_EXPORT_ANEW if found[0].is_graph else "",
            since=_made(trace, calls),
            because=("batch-stats",) if found[0].is_graph else (),
        )


@rule(
    "unregistered-module",
    level="strict",
    fires_when="a module with state or a mode ran inside a model without being its submodule",
    remedy="make it in __init__ and register it as a submodule (a list as nn.ModuleList)",
)
def unregistered_module(trace: Trace) -> Iterator[Violation]:
    unreached = {f.module.name for call in trace.calls for f in call.training if f.why}
    for calls, found in observations_by_model(trace, lambda call: call.unregistered):
        told_already = unreached.issuperset(f.module.name for f in found)
        yield violation_of_modules(
            calls,
            found,
            message=f"{model_names(calls)} ran {module_names(found)}, which it does not register",
            finding=f"{module_names(found)} ran inside it: eval(), to() and state_dict() cannot reach it",
            because=("train-mode",) if told_already else (),
        )


@rule(
    "no-forward",
    level="strict",
    fires_when="a marked test ran no model",
    remedy="run the model in the test itself, not in a fixture or a subprocess; or take the mark off",
)
def no_forward(trace: Trace) -> Iterator[Violation]:
    if trace.needs_forward and not trace.forwards:
        yield Violation(
            model=None,
            subjects=(),
            message="the test ran no model: the guard proved nothing",
            finding="no model's forward ran in the test",
        )


_EXPORT = "call eval() before export: a graph keeps the modes in which it was made; "
_EXPORT_ANEW = f"{_EXPORT}what it draws in eval mode too, let depend on self.training"
_EXPORT_TRACKED = f"{_EXPORT}keep running statistics (track_running_stats=True)"
_MEANT = (
    "if the gradients are the purpose (saliency, an attack), say so with allow=['grad-mode']; "
    "if not, call it under torch.inference_mode() or torch.no_grad()"
)


def _made(trace: Trace, calls: list[ForwardCall]) -> Site | None:
    """The line that made the graph which ran, of a model in training mode."""
    return next((call.at for call in trace.calls if calls[0].ran.model in call.graphs), None)


def _what_became(calls: list[ForwardCall]) -> str:
    """Models that torch made graphs of did not run; where both happened, the runs say enough."""
    ran = [call for call in calls if not call.exported]
    return f"ran {times(count_runs(ran))}" if ran else "was exported"


def _since(found: list[Observation]) -> Site | None:
    """The line that switched them all to training mode, if one did."""
    lines = {finding.since for finding in found}
    return lines.pop() if len(lines) == 1 else None


def _register_it(finding: Observation) -> str:
    """The remedy for a module that `model.eval()` cannot reach, or nothing."""
    return "make it in __init__ and register it as a submodule (a list as nn.ModuleList)" if finding.why else ""


def _leave_it_off(finding: Observation) -> str:
    """The remedy where the caller had turned autograd off, or nothing."""
    return "keep the forward from turning autograd on again (torch.enable_grad())" if finding.enabled_by_forward else ""


def _eval_it(calls: list[ForwardCall], found: list[Observation]) -> str:
    """`eval()` on the one module that was forgotten, else on what ran; on the model where several parts of it ran."""
    if all(call.exported for call in calls) or calls[0].graphs:
        return "call eval() before export: the graph keeps the mode, and its own eval() comes too late"
    ran = {call.ran.name for call in calls}
    who = found[0].module.name if len(found) == 1 else ran.pop() if len(ran) == 1 else calls[0].ran.model
    return f"call {who if who[0].islower() else 'model'}.eval() before the first forward"
