"""The checks of a forward, one per file."""
