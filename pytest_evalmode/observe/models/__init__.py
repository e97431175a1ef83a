"""The models that a window watches: discovery, names, lifetime and comparison."""
