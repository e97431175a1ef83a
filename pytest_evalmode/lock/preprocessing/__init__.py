"""Descriptions of preprocessing pipelines: their steps and parameters as JSON, read from the objects.

torchvision's transforms, albumentations and modules are described by their attributes, Hugging Face's processors and
tokenizers by the fields that they save, functions by their code and bound variables. Other callables are run on a fixed
image.
"""

from pytest_evalmode.lock.preprocessing.description import describe
from pytest_evalmode.lock.preprocessing.shared_normalization import assert_same_normalization
from pytest_evalmode.lock.preprocessing.step_differences import find_differences

__all__ = ["assert_same_normalization", "describe", "find_differences"]
