"""The census: tiny, randomly initialised models, one per architecture, each with the inputs of one forward."""

from __future__ import annotations

from tests.architectures.audio import AUDIO
from tests.architectures.describe import Architecture
from tests.architectures.language import DECODERS, ENCODER_DECODERS, ENCODERS
from tests.architectures.multimodal import MULTIMODAL
from tests.architectures.series import SERIES
from tests.architectures.vision import VISION

__all__ = ["ARCHITECTURES", "Architecture"]

ARCHITECTURES: tuple[Architecture, ...] = (
    *ENCODERS,
    *DECODERS,
    *ENCODER_DECODERS,
    *VISION,
    *AUDIO,
    *MULTIMODAL,
    *SERIES,
)
