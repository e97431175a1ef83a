"""A random generator that moved in a forward -> the call that drew, if that is to be told at all."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.outermost import Outermost
from pytest_evalmode.observe.source import code, graphs
from pytest_evalmode.observe.source.code import Draw
from pytest_evalmode.observe.source.sites import Sites
from pytest_evalmode.observe.state import generators
from pytest_evalmode.trace import Site


def moved(outermost: Outermost) -> bool:
    """Whether a generator has moved since this was last asked."""
    now = generators.state()
    if generators.still(outermost.state, now):
        return False
    outermost.state = now
    return True


def is_boundary(outermost: Outermost, module: nn.Module) -> bool:
    """Whether what was drawn before a module and what is drawn in it are different modules' draws."""
    hooked = module._forward_pre_hooks or module._forward_hooks  # what they draw is the module's, too
    return bool(hooked) or code.traits(module).may_draw or may_draw(outermost, module)


def may_draw(outermost: Outermost, module: nn.Module) -> bool:
    """Whether a module may draw: it initialises itself, or is in training mode, which is another rule's."""
    if id(module) in outermost.lazy or id(module) in outermost.training:
        return True
    trained = bool(outermost.training) and modules.is_opaque(module)
    return trained and any(id(part) in outermost.training for part in modules.tree(module))


def trained(outermost: Outermost, module: nn.Module) -> set[int]:
    """The parts beneath a module, by `id`, that draw in training mode and are in it."""
    parts = modules.tree(module)[1:] if outermost.training else []
    return {id(part) for part in parts if id(part) in outermost.training and code.traits(part).may_draw}


def suspects(
    module: nn.Module, *, seen: Container[int] = (), hosts: Container[str] = ("",)
) -> tuple[nn.Module, list[Draw]]:
    """The likeliest calls to have drawn, in a module's code or else in that of one beneath it.

    Of these rather one that was not `seen` to run: who was answers for itself.  `hosts` are those whose generators have
    moved: torch's, unless others are named.
    """
    first, *beneath = modules.tree(module)
    for part in (first, *sorted(beneath, key=lambda part: id(part) in seen)):
        found = [draw for draw in code.draws(part) if draw.host in hosts]
        if found and (part is module or not found[0].gated):
            return part, found
    return module, []


def are_foreign(module: nn.Module, suspects: list[Draw], sites: Sites) -> bool:
    """Whether another thread may well have drawn, and no call here ignores the mode, as one would that drew."""
    return sites.others_run() and not graphs.may_draw(module) and all(draw.gated for draw in suspects)


def first_site(suspects: list[Draw], sites: Sites) -> Site | None:
    """The user's line of the likeliest call that stands in code of the user's."""
    return next((site for draw in suspects if (site := sites.site(draw.code, draw.line))), None)
