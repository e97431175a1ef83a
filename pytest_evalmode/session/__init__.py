"""The pytest side of the plugin: options, fixtures, hooks and results.  Importing it does not import torch."""
