"""The errors of an observer."""

from __future__ import annotations


class ObserverErrors(list[Exception]):
    """A list of errors that ignores those caused by an exhausted stack.

    An observer that is called close to the recursion limit cannot work. This must not fail the test.
    """

    def append(self, error: Exception) -> None:
        """Add an error, unless it is a `RecursionError` or wraps one, as ctypes does."""
        if not (isinstance(error, RecursionError) or RecursionError.__name__ in str(error)):
            super().append(error)
