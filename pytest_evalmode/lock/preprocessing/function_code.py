"""Descriptions of functions: a digest of their code, their bound variables and the constants that they use."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any


def qualified_name(function: Any) -> str:
    """Return the name of a function or class with its module."""
    module = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", function.__name__))
    return f"{module}.{name}" if module else name


def bound_variables(function: Any) -> dict[str, object]:
    """Return the variables of a function that a call does not pass: closure, defaults and global constants."""
    code = function.__code__
    enclosed = dict(zip(code.co_freevars, map(_cell_contents, function.__closure__ or ()), strict=True))
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][len(code.co_varnames[: code.co_argcount]) - len(defaults) :]
    used = {name: function.__globals__.get(name) for name in code.co_names}
    constants = {name: value for name, value in used.items() if _is_data(value)}
    return {**constants, **enclosed, **dict(zip(names, defaults, strict=True)), **(function.__kwdefaults__ or {})}


def code_digest(function: Any) -> dict[str, str]:
    """Return a digest of the bytecode, by the version of Python; it does not depend on the file or line numbers."""
    return {f"{sys.version_info.major}.{sys.version_info.minor}": digest(_text(function.__code__).encode())}


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _cell_contents(cell: Any) -> object:
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
