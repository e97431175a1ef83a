"""The code of the user's functions and classes: its digests, and the variables that it uses."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePath
from types import CellType, CodeType, ModuleType
from typing import Any

from pytest_evalmode.lock.preprocessing.changed_names import changed_names, function_of

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARIES = (sysconfig.get_paths()["stdlib"], str(Path(__file__).parents[3] / "pytest_evalmode"))
_DATA = (bool, int, float, complex, str, bytes, range, type(None), Enum, PurePath)
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def qualified_name(function: Any) -> str:
    """Return the name of a function or class with its module."""
    module = getattr(function, "__module__", None)
    name = str(getattr(function, "__qualname__", function.__name__))
    return f"{module}.{name}" if module else name


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def unwrap(value: Any) -> Any:
    """Return the object of the user inside a form of it that computes the same: compiled, cached, without gradients."""
    for _ in range(9):
        wrapped = vars(value).get("_torchdynamo_orig_callable") if inspect.isfunction(value) else None
        if wrapped is None and not isinstance(value, type) and not _is_users(getattr(value, "__code__", None)):
            wrapped = getattr(value, "__wrapped__", None) or getattr(value, "_torchdynamo_inline", None)
        if wrapped is None and type(value).__module__.startswith("torch."):
            wrapped = vars(value).get("_modules", {}).get(_WRAPPERS.get(type(value).__name__))
        if wrapped is None:
            break
        value = wrapped
    return value


@dataclass(slots=True)
class Code:
    """What is known about the code that a function or the objects of a class run, without that of libraries."""

    digests: dict[str, str] = field(default_factory=dict)
    """A digest of each function's bytecode, by name; it does not depend on the file or line numbers."""
    variables: dict[str, object] = field(default_factory=dict)
    """Closures, defaults, class attributes and global constants."""

    def description(self) -> dict[str, Any]:
        """Return the digests by the version of Python, because each compiles a function differently."""
        return {"code": {_VERSION: dict(sorted(self.digests.items()))}} if self.digests else {}

    def add(self, value: Any, prefix: str = "") -> None:
        """Add a function or class, and what it uses."""
        if isinstance(value, type):
            for kind in reversed(value.__mro__):
                self._add_members(kind, prefix)
            return
        function = unwrap(function_of(value))
        code: Any = getattr(function, "__code__", None)
        name = str(getattr(function, "__qualname__", "")).replace("<locals>.", "")
        if not _is_users(code) or self.digests.get(name) == (hashed := digest(_text(code, function.__doc__).encode())):
            return
        self.digests[name] = digest((self.digests[name] + hashed).encode()) if name in self.digests else hashed
        self.variables |= {f"{prefix}{key}": each for key, each in _bound(function).items() if key != "__class__"}
        changed = changed_names(function).variables
        for key, each in _used_globals(function):
            if inspect.isfunction(unwrap(function_of(each))) or (isinstance(each, type) and is_users_class(each)):
                self.add(each, f"{key}.")
            elif key not in changed and (_is_data(each) or is_users_class(type(each))):
                self.variables[f"{prefix}{key}"] = each

    def _add_members(self, kind: type, prefix: str) -> None:
        is_own = is_users_class(kind)
        for name, member in vars(kind).items():
            if name.startswith("__") and name != "__call__":
                continue
            if is_own and _is_data(member):
                self.variables[f"{prefix}{name}"] = member
            elif callable(function_of(member)) and not isinstance(member, type):
                self.add(member, f"{name}.")


def _is_data(value: object) -> bool:
    """Return whether a value is plain data, or a container of it."""
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_data, value))
    return isinstance(value, _DATA) or type(value).__name__ in ("ndarray", "Tensor", "dtype")


def _is_users(code: object) -> bool:
    return isinstance(code, CodeType) and not _is_library(code.co_filename)


def is_users_class(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if file is not None:
        return not _is_library(file)
    return any(_is_users(getattr(member, "__code__", None)) for member in vars(kind).values())


@functools.cache
def _is_library(file: str) -> bool:
    if file.startswith("<"):
        return file.startswith("<frozen")
    return bool({"site-packages", "dist-packages"} & {*Path(file).parts}) or file.startswith(_LIBRARIES)


def _bound(function: Any) -> dict[str, object]:
    """Return the variables of a function that a call does not pass: closure and defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    enclosed = {name: cell.cell_contents for name, cell in cells if cell != _EMPTY_CELL}
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return enclosed | {each.name: each.default for each in parameters if each.default is not each.empty}


_EMPTY_CELL = CellType()


def _used_globals(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the global variables that a function uses, and those of the user's modules that it uses."""
    names = {*_names(function.__code__)}
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType):
            yield name, value
        elif not _is_library(getattr(value, "__file__", None) or "<frozen>"):
            yield from ((f"{name}.{each}", vars(value)[each]) for each in sorted(names & vars(value).keys()))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if inspect.iscode(each):
            yield from _names(each)


def _text(code: CodeType, doc: str | None = None) -> str:
    constants = [_text(each) if inspect.iscode(each) else _constant(each) for each in code.co_consts if each != doc]
    return repr((code.co_code.hex(), code.co_names, code.co_freevars, constants))


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
