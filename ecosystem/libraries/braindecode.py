"""The networks of braindecode: each takes the numbers of channels, times and classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import randn

REQUIREMENTS = ("torch==2.14.1", "torchaudio==2.11.1", "braindecode==1.8.1")
CHANNELS, TIMES = 22, 1000
LEFT_OUT = {"REVE", "BENDR", "DeepSleepNet", "EEGInceptionMI", "EEGPT"}
"""Models that download files, or take more than ten seconds."""


def architectures() -> Iterator[Architecture]:
    """Yield each model that can be built from the shape of its input."""
    from braindecode.models.util import models_dict

    for name in sorted(models_dict.keys() - LEFT_OUT):
        yield Architecture(name, partial(_build, name), partial(dict, x=randn(2, CHANNELS, TIMES)), _call)


def _build(name: str) -> Any:
    from braindecode.models.util import models_dict

    return models_dict[name](n_chans=CHANNELS, n_outputs=4, n_times=TIMES, sfreq=250)


def _call(model: Any, x: Any) -> object:
    return model(x)
