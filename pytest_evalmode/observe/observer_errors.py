"""The errors of an observer."""

from __future__ import annotations


class ObserverErrors(list[Exception]):
    """A list of errors that ignores those caused by an exhausted stack.

    An observer that is called close to the recursion limit cannot work. This must not fail the test.

    Every exception that is raised in a `with` statement of the list is added to it instead.
    """

    def append(self, error: Exception) -> None:
        """Add an error, unless it is a `RecursionError` or wraps one, as ctypes does."""
        if not (isinstance(error, RecursionError) or RecursionError.__name__ in str(error)):
            super().append(error)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, Exception):
            self.append(error)
            return True
        return False
