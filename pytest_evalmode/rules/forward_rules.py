"""Rules about forwards: training mode, autograd, batch statistics, random numbers, unregistered modules."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_evalmode.rules.call_groups import (
    calls_by_model,
    count_runs,
    model_names,
    module_names,
    most_telling_first,
    observations_by_model,
    unique_by_module,
    violation_of_modules,
)
from pytest_evalmode.rules.rule import Violation, rule
from pytest_evalmode.rules.training_calls import (
    first_backward,
    first_optimizer_step,
    format_operation,
    gradient_remedy,
    mode_remedy,
    operation_details,
    pause_remedy,
)
from pytest_evalmode.rules.wording import plural, times, title
from pytest_evalmode.trace import ForwardCall, Observation, Site, Trace


@rule(
    "train-mode",
    fires_when="a model's forward ran while one of its modules was in training mode",
    remedy="call model.eval() before the first forward",
)
def train_mode(trace: Trace) -> Iterator[Violation]:
    # An export is not reported if its graph drew random numbers: random-forward reports it, at the line of the export.
    drawing_graphs = {call.ran.model for call in trace.calls if any(draw.is_graph for draw in call.draws)}
    for calls in calls_by_model(trace, lambda call: call.training and not call.graphs & drawing_graphs):
        model = calls[0].ran.model
        calls.sort(key=lambda call: model not in call.graphs)  # the export of a graph before the runs of the graph
        training = unique_by_module(observation for call in calls for observation in call.training)
        relevant = [observation for observation in training if observation.module.mode_dependent] or training
        relevant = most_telling_first(relevant)
        why = f": {relevant[0].why}" if relevant[0].why else ""
        lines = {observation.since for observation in relevant}
        since = lines.pop() if len(lines) == 1 else None
        runs = [call for call in calls if not call.exported]
        ran = f"ran {times(count_runs(runs))}" if runs else "was exported"
        of = f" of {plural(calls[0].modules, 'module')}" if len(relevant) > 1 else ""
        were = "was" if len(relevant) == 1 else "were"
        step, backward = first_optimizer_step(trace, model), first_backward(trace, model)
        yield violation_of_modules(
            calls,
            relevant,
            message=f"{model_names(calls)} {ran} in training mode",
            finding=f"{module_names(relevant)}{of} {were} in training mode{why}",
            remedy=_train_mode_remedy(trace, calls, relevant, training),
            since=since,
            details={
                **({"since": str(since)} if since else {}),
                **operation_details(trained=step, used=None if step else backward),
            },
            never_intended=bool(step or backward or relevant[0].why) or any(call.all_training for call in calls),
            train=tuple(observation.module.path for observation in training),
        )


@rule(
    "grad-mode",
    fires_when="a model's forward recorded autograd: grad mode was on while a parameter or input required grad, or the "
    "output requires grad. Strict: grad mode was on at all, for anything that has parameters",
    remedy="call the model under torch.inference_mode() or torch.no_grad()",
)
def grad_mode(trace: Trace) -> Iterator[Violation]:
    for calls, recorded in observations_by_model(trace, lambda call: (call.autograd,) if call.autograd else ()):
        model = calls[0].ran.model
        step, backward = first_optimizer_step(trace, model), first_backward(trace, model)
        recorded = sorted(recorded, key=lambda observation: not observation.recorded)
        is_recorded = recorded[0].recorded
        used_graph = f"; {backward.name} used the graph" if backward else ""
        remedy = ""
        if step:
            remedy = pause_remedy(step)
        elif backward:
            remedy = gradient_remedy(backward)
        elif recorded[0].enabled_by_forward:
            remedy = "do not enable grad mode in the forward (torch.enable_grad())"
        yield violation_of_modules(
            calls,
            recorded,
            message=f"{model_names(calls)} ran {times(count_runs(calls))} with "
            + (f"autograd recording{used_graph}" if is_recorded else "grad mode on"),
            finding=f"{title(recorded[0].module)} {'recorded autograd' if is_recorded else 'ran with grad mode on'}: "
            + recorded[0].why
            + (f"; the graph was used by {format_operation(backward)}" if backward else ""),
            remedy=remedy,
            details=operation_details(trained=step, used=backward),
            because=("train-mode",) if step or backward else (),
            never_intended=bool(step),
        )


@rule(
    "batch-stats",
    fires_when="a batch norm in eval mode normalized with the batch's own statistics (track_running_stats=False, or a "
    "graph traced or exported that way)",
    remedy="create it with track_running_stats=True; trace or export the model only after model.eval()",
)
def batch_stats(trace: Trace) -> Iterator[Violation]:
    for calls, norms in observations_by_model(trace, lambda call: call.batch_stats):
        yield violation_of_modules(
            calls,
            norms,
            message=f"{model_names(calls)} ran {times(count_runs(calls))} with batch statistics",
            finding=f"{module_names(norms)} used the batch's own statistics in eval mode: {norms[0].why}",
            remedy=_EXPORT_BATCH_STATS if norms[0].is_graph else "",
            since=_export_site(trace, calls),
            because=("train-mode",),
        )


@rule(
    "random-forward",
    fires_when="a forward in eval mode drew from torch's global generators: F.dropout without training=, "
    "scaled_dot_product_attention(dropout_p=...), DropPath that ignores eval(), a graph traced or exported in training "
    "mode. Strict: the forward of any module (a random augmentation), and Python's and NumPy's generators",
    remedy="make it depend on self.training (F.dropout(x, training=self.training)), or draw from a separate "
    "torch.Generator",
)
def random_forward(trace: Trace) -> Iterator[Violation]:
    for calls, draws in observations_by_model(trace, lambda call: call.draws):
        why = f": {draws[0].why}" if draws[0].why else ""
        mode = "" if any(draw.training for draw in draws) else " in eval mode"
        yield violation_of_modules(
            calls,
            draws,
            message=f"{model_names(calls)} drew random numbers in {plural(count_runs(calls), 'forward')}{mode}",
            finding=f"{module_names(draws)} drew random numbers{mode}{why}",
            remedy=_EXPORT_RANDOM if draws[0].is_graph else "",
            since=_export_site(trace, calls),
            because=("batch-stats",) if draws[0].is_graph else (),
        )


_REGISTER = "create it in __init__ and register it as a submodule (put a list of modules into nn.ModuleList)"


@rule(
    "unregistered-module",
    level="strict",
    fires_when="a module with state or mode-dependent behavior ran inside a model without being its submodule (eval() "
    "and state_dict() cannot reach it)",
    remedy=_REGISTER,
)
def unregistered_module(trace: Trace) -> Iterator[Violation]:
    # train-mode reports an unregistered module in training mode, with the same remedy.
    reported = {training.module.name for call in trace.calls for training in call.training if training.why}
    for calls, modules in observations_by_model(trace, lambda call: call.unregistered):
        explained = reported.issuperset(observation.module.name for observation in modules)
        noun = "an unregistered module" if len(modules) == 1 else f"{len(modules)} unregistered modules"
        yield violation_of_modules(
            calls,
            modules,
            message=f"{model_names(calls)} ran {noun}: {module_names(modules)}",
            finding=f"{module_names(modules)} ran inside the model: "
            "eval(), to() and state_dict() do not reach a module that is not registered",
            because=("train-mode",) if explained else (),
        )


@rule(
    "no-forward",
    level="strict",
    fires_when="a marked test ran no model: the guard proved nothing",
    remedy="run the model in the test itself, not in a fixture or a subprocess; or remove the mark",
)
def no_forward(trace: Trace) -> Iterator[Violation]:
    if trace.needs_forward and not trace.forwards:
        yield Violation(
            model=None,
            subjects=(),
            message="the test ran no model: the guard proved nothing",
            finding="no model's forward ran in the test",
        )


_EXPORT = "call eval() before exporting the model: a graph keeps the mode that its modules had; "
_EXPORT_RANDOM = f"{_EXPORT}if it still draws random numbers, make that depend on self.training"
_EXPORT_BATCH_STATS = f"{_EXPORT}if it still uses batch statistics, set track_running_stats=True"


def _export_site(trace: Trace, calls: list[ForwardCall]) -> Site | None:
    """Return the line that exported the graph of these calls from a model in training mode, or None."""
    return next((call.at for call in trace.calls if calls[0].ran.model in call.graphs), None)


def _train_mode_remedy(
    trace: Trace, calls: list[ForwardCall], relevant: list[Observation], training: list[Observation]
) -> str:
    """Return the remedy for modules in training mode; `relevant` are those that the violation names."""
    step = first_optimizer_step(trace, calls[0].ran.model)
    if relevant[0].why:  # `model.eval()` does not reach it
        return _REGISTER
    if step:
        return pause_remedy(step)
    if all(call.exported for call in calls) or calls[0].graphs:
        return "call eval() before exporting the model: the graph keeps the mode, and calling eval() on it is too late"
    return mode_remedy(trace, calls, relevant, _eval_target(calls, training))


def _eval_target(calls: list[ForwardCall], training: list[Observation]) -> str:
    """Return an expression for the module on which to call `eval()`: the only one in that mode, or what ran."""
    ran = calls[0].ran
    if not calls[0].expression:
        return "model"
    if len(training) == 1 and training[0].module.suffix.startswith(ran.suffix):
        return calls[0].expression + training[0].module.suffix[len(ran.suffix) :]
    if len({call.ran.name for call in calls}) > 1:  # several submodules ran: call eval() on the model
        return calls[0].expression.removesuffix(ran.suffix)
    return calls[0].expression
