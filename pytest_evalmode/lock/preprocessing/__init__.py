"""Descriptions of preprocessing pipelines: their steps and parameters as JSON, read from the objects.

torchvision's transforms, albumentations and modules are described by their attributes, Hugging Face's processors and
tokenizers by the fields that they save, functions and classes of the user by their code and the variables that it uses.
Other objects without attributes are described by their repr.
"""

from pytest_evalmode.lock.preprocessing.description import describe
from pytest_evalmode.lock.preprocessing.step_differences import find_differences

__all__ = ["describe", "find_differences"]
