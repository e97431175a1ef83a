"""The functions of torch and the standard library that are replaced while a window is open.

Most replacements report the calls that have ended to a method of the observers, which the table names. Any other is
defined beside its observer.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.compiler import is_compiling

from pytest_evalmode import forks
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.private_api import resolve

Method = Callable[..., Any]
Level = Literal["default", "strict"]

_LIBRARIES = tuple(f"{Path(str(module.__file__)).parent}{os.sep}" for module in (torch, concurrent.futures))
_TORCH_GLOBALS = vars(sys.modules[nn.Module.__module__])
_EMPTY = CellType()
_lock = forks.new_lock(sys.modules[__name__])
_keeps = False
"""Whether the patches of the table stay in place when their last observer stops."""


class Call(NamedTuple):
    """A call of a patched function that has ended."""

    frame: FrameType
    """The caller's."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class Patch:
    """Replaces a function when the first observer starts, and restores it when the last one stops.

    The replacement is always the same function, and has no closure if compiled code may call it: torch.compile guards
    on both, so a difference would cause a recompilation.
    """

    def __init__(self, owner: object, name: str, lost: str = "", level: Level = "default", method: str = "") -> None:
        """Describe a patch of the function `name` of `owner`: a class or a Python module, or the name of one.

        If it does not exist, the patch does nothing; `lost` says what is not observed then. Each `Call` is passed to
        the `method` of the observers.
        """
        self.name = name
        self.lost = lost
        self.level = level
        self.observers: tuple[Any, ...] = ()
        self._owner = resolve(owner) if isinstance(owner, str) else owner
        self.is_available = self._owner is not None and hasattr(self._owner, name)
        self.original: Method = getattr(self._owner, name, _missing)
        self._replacement: object = self.original
        self.is_inherited = False
        """Whether the owner itself does not define the function."""
        self.is_kept = False
        """Whether it may still be in place after its last observer has stopped."""
        self._kept_over: Method | None = None
        """What it calls while no observer runs, once it has been kept."""
        self._hidden_wrapper: Method | None = None
        """A function of other code that may call the replacement in a way that is not visible, such as a mock."""
        if method:
            self._report_to(method)

    def replace_with(self, function: Method) -> Method:
        """Set the replacement, which calls `original`. Usable as a decorator."""
        replacement = wraps(self.original)(function)
        # `type` does the same to an `__init_subclass__` that a class body defines.
        self._replacement = classmethod(replacement) if self.name == "__init_subclass__" else replacement
        return replacement

    def _report_to(self, method: str) -> None:
        @self.replace_with
        def _observed(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = self.original(*args, **kwargs)
            if not is_compiling():
                for observer in self.observers:
                    with observer.errors:
                        getattr(observer, method)(Call(sys._getframe(1), args, kwargs, result))
            return result

    def start(self, observer: object) -> None:
        """Add an observer, and install the replacement unless the function in place already calls it."""
        if not self.is_available:
            return
        with _lock:
            current = self._current()
            self.observers = (*self.observers, observer)
            if current is self.original or not self._is_called_by(current):
                self.original = current
                self.is_inherited = self.name not in vars(self._owner)
                setattr(self._owner, self.name, self._replacement)

    def stop(self, observer: object, *, keep: bool = False) -> None:
        """Remove an observer, and restore the original after the last one, unless `keep` leaves the replacement.

        If other code has wrapped the replacement, its wrapper stays, and the replacement only calls the original.
        """
        if observer not in self.observers:
            return
        with _lock:
            current = self._current()
            self.observers = tuple(other for other in self.observers if other is not observer)
            if not self.observers and current is self._replacement:
                # Other code may restore what it has replaced, so a replacement of its function must not be kept.
                if keep and _is_unpatched(self.original):
                    self.is_kept, self._kept_over = True, self.original
                else:
                    self._restore_original()

    def release(self) -> None:
        """Stop keeping the replacement in place: restore the original unless an observer runs."""
        self.is_kept = False
        if self.observers:
            return
        if (current := self._current()) is self._replacement:
            self._restore_original()
        elif self._may_hide(current):
            self._hidden_wrapper = current

    def _restore_original(self) -> None:
        if self.is_inherited:
            delattr(self._owner, self.name)
        else:
            setattr(self._owner, self.name, self.original)
        # A fixture that found the replacement in place puts it back, when what has just been restored may be gone.
        self.original = self._kept_over or self.original

    def _is_called_by(self, current: Method) -> bool:
        """Return whether the function in place is the replacement or may call it."""
        is_wrapper = current is self._hidden_wrapper or _reaches(current, self._replacement)
        return is_wrapper or (self.is_kept and self._may_hide(current))

    def _may_hide(self, current: Method) -> bool:
        """Return whether a function may call the kept replacement in a way that is not visible."""
        return not _is_unpatched(current) and not _reaches(current, self._kept_over)

    def _current(self) -> Method:
        """Return the function that is in place now, and note if it is a mock that wraps the replacement."""
        attributes = vars(self._owner)  # much faster than getattr() on a class with many subclasses that just changed
        current: Method = attributes[self.name] if self.name in attributes else getattr(self._owner, self.name)
        hides_calls = not isinstance(current, FunctionType) or hasattr(current, "mock")
        if self.observers and current is not self.original and hides_calls:
            self._hidden_wrapper = current
        return current


def _missing(*args: object, **kwargs: object) -> None: ...


def _is_unpatched(function: object) -> bool:
    """Return whether a function is defined by torch or the standard library, and does not come from other code."""
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return code.co_filename.startswith(_LIBRARIES)
    return isinstance(function, BuiltinFunctionType)


def _reaches(method: object, function: object) -> bool:
    """Return whether a method is a function or wraps it: by `__wrapped__`, a closure or a global that it names."""
    pending, seen = [method], set[int]()
    while pending:
        value = pending.pop()
        if value is function:
            return True
        if type(value) is FunctionType and id(value) not in seen and value.__globals__ is not _TORCH_GLOBALS:
            seen.add(id(value))
            pending.append(getattr(value, "__wrapped__", None))
            pending.extend(cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY)
            pending.extend(value.__globals__.get(name) for name in value.__code__.co_names)
    return False


# --- the table. Functions that torch offers under several names are replaced where all of these arrive.

module_call = Patch("torch.nn:Module", "__call__", "forwards: which models run, and all rules about a forward")
init_subclass = Patch("torch.nn:Module", "__init_subclass__", "classes with their own `__call__` defined in a window")
module_setattr = Patch("torch.nn:Module", "__setattr__", "what the test set on a shared model", "strict")
add_module = Patch("torch.nn:Module", "add_module", "submodules that the test replaced in a ModuleDict", "strict")
module_train = Patch("torch.nn:Module", "train", "the line that switched a module to training mode")
capture_end = Patch("torch.cuda:CUDAGraph", "capture_end", "the state of models that first run in a graph capture")
work_item_run = Patch("concurrent.futures.thread:_WorkItem", "run", "the line that submitted a forward to a pool")

(
    load_state_dict,
    module_apply,
    requires_grad,
    run_backward,
    program_init,
    program_module,
    jit_trace,
    onnx_trace,
    work_item_init,
) = (
    Patch(owner, name, lost, method=method)
    for owner, name, method, lost in (
        ("torch.nn:Module", "load_state_dict", "add_load", "incomplete loads, and that a load wrote to a model"),
        ("torch.nn:Module", "_apply", "add_conversion", "that half(), to() or another conversion wrote to a model"),
        ("torch.nn:Module", "requires_grad_", "add_requires_grad", "that requires_grad_() wrote to a model"),
        ("torch.autograd", "_engine_run_backward", "add_gradients", "backward() and autograd.grad() through a model"),
        ("torch.export:ExportedProgram", "__init__", "add_program", "exports in training mode"),
        ("torch.export:ExportedProgram", "module", "add_graph", "which exported graph has run"),
        ("torch.jit._trace", "make_module", "add_trace", "jit traces in training mode"),
        ("torch.jit._trace:ONNXTracedModule", "forward", "add_onnx", "older onnx exports in training mode"),
        ("concurrent.futures.thread:_WorkItem", "__init__", "add_work", "the line that submitted a forward to a pool"),
    )
)

SETTERS: dict[Patch, tuple[str, ...]] = {
    Patch(owner, name, "the line that changed a global flag", "strict"): flags
    for owner, flags, *names in (
        ("torch._C", (), "_set_default_dtype", "_set_default_tensor_type"),
        ("torch._C", (), "_set_deterministic_algorithms", "_set_float32_matmul_precision"),
        ("torch", (), "set_num_threads"),
        ("torch.backends:ContextProp", (), "__set__"),
        ("torch.backends.cuda:cuBLASModule", (), "__setattr__"),
        ("torch.autograd.grad_mode:set_grad_enabled", ("grad_mode",), "__init__", "__exit__"),
        ("torch.autograd.anomaly_mode:set_detect_anomaly", ("anomaly_mode",), "__init__", "__exit__"),
        ("torch.utils._device:DeviceContext", ("default_device",), "__enter__", "__exit__"),
    )
    for name in names
}
"""With the flags to read around a call: () reads all. A setter that a forward may call often names the one it sets."""

TABLE = (*(value for value in list(globals().values()) if isinstance(value, Patch)), *SETTERS)


def keep_in_place() -> None:
    """Leave patches in place between windows, until `restore_all()`.

    When a method such as `nn.Module.__call__` is replaced, CPython updates all subclasses, which takes milliseconds if
    there are a thousand.
    """
    global _keeps
    _keeps = True


def restore_all() -> None:
    """Remove the patches that `keep_in_place()` has left. An error in one leaves no other in place."""
    global _keeps
    _keeps = False
    with _lock:
        for patch in TABLE:
            if patch.is_kept:
                with suppress(Exception):
                    patch.release()


class Observer:
    """Base class of what observes a window: its patches are in place from `start()` to `stop()`."""

    patched: ClassVar[tuple[Patch, ...]] = ()

    def __init__(self) -> None:
        self.errors = ObserverErrors()
        """Errors of the observer itself: what it does while the code under test runs is `with self.errors:`."""

    @property
    def is_running(self) -> bool:
        return self in _running

    def start(self, *, strict: bool = False) -> None:
        """Install the patches. If this raises an exception, call `stop()` too."""
        _running.add(self)
        for patch in self.patched:
            if strict or patch.level == "default":
                patch.start(self)

    def stop(self) -> None:
        """Remove the patches, whether or not they were installed. An error in one leaves no other in place."""
        for patch in self.patched:
            with self.errors:
                patch.stop(self, keep=_keeps)
        _running.discard(self)


_running: set[Observer] = set()


@forks.run_in_child
def _stop_all() -> None:
    restore_all()
    for observer in list(_running):
        with observer.errors:
            observer.stop()
