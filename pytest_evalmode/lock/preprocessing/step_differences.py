"""Two descriptions of a pipeline, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from pytest_evalmode.lock.preprocessing.equivalent_steps import canonical_form

_ABSENT = object()


def find_differences(old: object, new: object) -> list[str]:
    """Where two descriptions differ, each by its field: `Normalize.mean: (0.485, ...) -> (0.5, ...)`.

    What is only written in another way is none.  The others are told as they are written, or spelled alike if that is
    shorter.
    """
    as_written = list(_differences(old, new, ""))
    spelled_alike = list(_differences(canonical_form(old), canonical_form(new), ""))
    return min(as_written, spelled_alike, key=lambda told: sum(map(len, told)))


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if type(old) is type(new) is dict:
        a, b = old.get("step"), new.get("step")
        if a != b and (a or b):
            yield f"{path or 'step'}: {_told(old)} -> {_told(new)}"
            return
        here = _under(path, a) if a else path
        for key in dict.fromkeys((*old, *new)):
            if key == "code" and not _comparable(old, new):
                continue
            if key in old and key in new:
                yield from _differences(old[key], new[key], _joined(here, key))
            else:
                yield f"{_joined(here, key)}: {_told(old.get(key, _ABSENT))} -> {_told(new.get(key, _ABSENT))}"
    elif type(old) is type(new) is list and any(isinstance(each, dict) for each in (*old, *new)):
        yield from _list_differences(old, new, path)
    elif old != new:
        yield f"{path or 'value'}: {_told(old)} -> {_told(new)}"


def _comparable(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two digests of code say anything: of another function its name does.

    Another version of Python compiles the same function otherwise.
    """
    if old.get("function") != new.get("function"):
        return False
    a, b = old.get("code"), new.get("code")
    return not (isinstance(a, dict) and isinstance(b, dict)) or bool(a.keys() & b.keys())


def _under(path: str, step: str) -> str:
    """A step is named by its type; the containers around it say only where."""
    return f"{path}.{step}" if path.endswith("]") else step if not path else f"{path}.{step}"


def _joined(path: str, key: str) -> str:
    return path if key in ("transforms", "step") and path else f"{path}.{key}" if path else key


def _list_differences(old: list[Any], new: list[Any], path: str) -> Iterator[str]:
    """Steps are matched by their type, so that one that came or went is told as that."""
    before, after = ([step_name(each) for each in steps] for steps in (old, new))
    counts = Counter(before)
    if before != after and sorted(before) == sorted(after):
        yield f"{path or 'steps'}: in another order: {', '.join(before)} -> {', '.join(after)}"
        return
    for tag, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            for a, b, at in zip(old[i:j], new[k:m], range(i, j), strict=True):
                named = counts[step_name(a)] == 1 and step_name(a) != "dict"
                place = "" if named else f"{path}[{at}]" if step_name(a) == "dict" else f"[{at}]"
                yield from _differences(a, b, place)
        else:
            for each in old[i:j]:
                yield f"{step_name(each)}: {_told(each)} -> (absent)"
            for each in new[k:m]:
                yield f"{step_name(each)}: (absent) -> {_told(each)}"


def step_name(step: Any) -> str:
    if isinstance(step, dict):
        name = step.get("step") or step.get("function") or step.get("method")
        return step_name(step["partial"]) if name is None and "partial" in step else str(name or "dict")
    return str(step)


def _told(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, dict):
        name = step_name(value)
        inner = ", ".join(
            f"{key}={_told(each)}" for key, each in value.items() if key not in ("step", "function", "code")
        )
        return _short(f"{name}({inner})")
    if isinstance(value, list):
        return _short("(" + ", ".join(map(_told, value)) + ")")
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
