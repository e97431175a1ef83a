"""The lines of user code on the call stack, and what that code still holds."""
