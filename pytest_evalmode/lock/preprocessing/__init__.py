"""What a pipeline does to inputs, read from its objects: its steps and their parameters, as JSON.

torchvision's transforms, albumentations and modules are read by what they hold, Hugging Face's processors and
tokenizers by what they would save, functions by their code and what is bound to them.  What tells nothing is probed.
"""

from pytest_evalmode.lock.preprocessing.description import describe
from pytest_evalmode.lock.preprocessing.shared_normalization import assert_same_normalization
from pytest_evalmode.lock.preprocessing.step_differences import find_differences

__all__ = ["assert_same_normalization", "describe", "find_differences"]
