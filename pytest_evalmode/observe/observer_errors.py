"""What went wrong in an observer."""

from __future__ import annotations


class ObserverErrors(list[Exception]):
    """The errors of an observer, but for those that only say that a test has used up the stack.

    What runs within a few calls of the recursion limit is not observed: that is no reason to fail it.
    """

    def append(self, error: Exception) -> None:
        if not (isinstance(error, RecursionError) or RecursionError.__name__ in str(error)):  # ctypes wraps it
            super().append(error)
