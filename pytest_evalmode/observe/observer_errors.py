"""The errors of an observer."""

from __future__ import annotations


class ObserverErrors(list[Exception]):
    """The errors of an observer; an exception that is raised in a `with` statement of the list is added to it."""

    def append(self, error: Exception) -> None:
        """Add an error, unless the stack was exhausted: an observer near the recursion limit must not fail the test."""
        # ctypes wraps a RecursionError.
        if not (isinstance(error, RecursionError) or RecursionError.__name__ in str(error)):
            super().append(error)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            self.append(error)
            return True
        return False
