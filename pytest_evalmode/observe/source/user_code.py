"""Which files hold user code: those below a root, but not installed packages, the standard library and this plugin."""

from __future__ import annotations

import os
import sysconfig
from contextlib import suppress
from functools import lru_cache
from os import getcwd
from pathlib import Path

_PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
_LIBRARIES = (str(Path(sysconfig.get_paths()["stdlib"]).resolve()), f"{Path(__file__).resolve().parents[2]}{os.sep}")


def user_path(name: str, root: Path | None) -> str | None:
    """Return the path of a file as it is reported, or None if it is not user code.

    User code is limited to `root`, pytest's rootdir. Without one (in a script) it may be anywhere, and is reported
    relative to the working directory.
    """
    if name.startswith("<"):
        return None
    if root is not None and os.path.isabs(name):
        return _path_below(root, name)
    path, base = Path(name), root
    with suppress(OSError):  # the working directory may have been deleted
        path = path.resolve()
        base = root or Path(getcwd())
    if base is not None and path.is_relative_to(base):
        return _path_below(base, str(path))
    return None if root or is_installed(path) else str(path)


@lru_cache(maxsize=4096)  # each window asks for the same files
def _path_below(root: Path, name: str) -> str | None:
    path = Path(name).resolve()
    return None if is_installed(path) or not path.is_relative_to(root) else path.relative_to(root).as_posix()


def is_installed(path: Path) -> bool:
    """Return whether a file belongs to an installed package, the standard library or this plugin."""
    return not _PACKAGE_FOLDERS.isdisjoint(path.parts) or str(path).startswith(_LIBRARIES)
