"""Compares two descriptions of a pipeline, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from pytest_evalmode.lock.preprocessing.equivalent_steps import canonical_forms

_ABSENT = object()


def find_differences(old: object, new: object) -> list[str]:
    """Return where two descriptions differ, by field: `Normalize.mean: (0.485, ...) -> (0.5, ...)`.

    Equivalent pipelines do not differ. Otherwise the descriptions are compared as written, or in their canonical forms
    if that gives a shorter result.
    """
    as_written = list(_differences(old, new, ""))
    canonical = list(_differences(*canonical_forms(old, new), ""))
    return min(as_written, canonical, key=lambda lines: sum(map(len, lines)))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if type(old) is type(new) is dict:
        a, b = old.get("step"), new.get("step")
        if a != b:
            yield f"{path or 'step'}: {_format(old)} -> {_format(new)}"
            return
        step_path = path if not a else f"{path}.{a}".removeprefix(".")
        for key in dict.fromkeys((*old, *new)):
            if key == "code":
                yield from _code_differences(old, new, path)
            elif old.get(key, _ABSENT) != new.get(key, _ABSENT):
                is_shown = key != "transforms" or not step_path
                key_path = f"{step_path}.{key}".removeprefix(".") if is_shown else step_path
                yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), key_path)
    elif type(old) is type(new) is list and any(isinstance(each, dict) for each in (*old, *new)):
        yield from _list_differences(old, new, path)
    elif old != new:
        yield f"{path or 'value'}: {_format(old)} -> {_format(new)}"


def _code_differences(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    """Yield which functions of a step changed; digests are only compared within one version of Python."""
    a, b = old.get("code"), new.get("code")
    if old.get("function") != new.get("function") or not (isinstance(a, dict) and isinstance(b, dict)):
        return
    for was, now in [(a[each], b[each]) for each in a if isinstance(a[each], dict) and isinstance(b.get(each), dict)]:
        changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if changed:
            yield f"{path or step_name(old)}: its code changed ({', '.join(changed)})"


def _list_differences(old: list[Any], new: list[Any], path: str) -> Iterator[str]:
    """Yield how two lists of steps differ; steps are matched by type, to recognize added and removed ones."""
    before, after = ([step_name(each) for each in steps] for steps in (old, new))
    counts = Counter(before)
    if before != after and sorted(before) == sorted(after):
        yield f"{path or 'steps'}: reordered: {', '.join(before)} -> {', '.join(after)}"
        return
    for tag, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            for a, b, at in zip(old[i:j], new[k:m], range(i, j), strict=True):
                # A step with a unique type needs no index.
                is_unique = counts[step_name(a)] == 1 and step_name(a) != "dict"
                place = "" if is_unique else f"{path}[{at}]" if step_name(a) == "dict" else f"[{at}]"
                yield from _differences(a, b, place)
        else:
            for each in old[i:j]:
                yield f"{step_name(each)}: {_format(each)} -> (absent)"
            for each in new[k:m]:
                yield f"{step_name(each)}: (absent) -> {_format(each)}"


def step_name(step: Any) -> str:
    """Return the name of a step's type, function or method."""
    if isinstance(step, dict):
        name = step.get("step") or step.get("function") or step.get("method")
        return step_name(step["partial"]) if name is None and "partial" in step else str(name or "dict")
    return str(step)


def _format(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, dict):
        name = step_name(value)
        inner = ", ".join(
            f"{key}={_format(each)}" for key, each in value.items() if key not in ("step", "function", "code")
        )
        return _shorten(f"{name}({inner})")
    if isinstance(value, list):
        return _shorten("(" + ", ".join(map(_format, value)) + ")")
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
