"""What a function does, as far as it can be read: its code, what is bound to it, the constants that it names."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any


def qualified_name(function: Any) -> str:
    module = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", function.__name__))
    return f"{module}.{name}" if module else name


def bound_variables(function: Any) -> dict[str, object]:
    """The variables of a function that are not its arguments: enclosed ones, defaults, and plain data it names."""
    code = function.__code__
    enclosed = dict(zip(code.co_freevars, map(_content, function.__closure__ or ()), strict=True))
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][len(code.co_varnames[: code.co_argcount]) - len(defaults) :]
    named = {name: function.__globals__.get(name) for name in code.co_names}
    constants = {name: value for name, value in named.items() if _is_data(value)}
    return {**constants, **enclosed, **dict(zip(names, defaults, strict=True)), **(function.__kwdefaults__ or {})}


def code_digest(function: Any) -> dict[str, str]:
    """A digest of the instructions, by the version of Python that compiled them; not of their lines or their file."""
    return {f"{sys.version_info.major}.{sys.version_info.minor}": digest(_text(function.__code__).encode())}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None


def _is_data(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return isinstance(value, (int, float, str)) or type(value).__name__ in ("ndarray", "Tensor")


def _text(code: Any) -> str:
    constants = [_text(each) if inspect.iscode(each) else _constant(each) for each in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, code.co_freevars, constants))


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
