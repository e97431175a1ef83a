"""Tiny, randomly initialized models, one per architecture, each with the inputs of one forward."""

from __future__ import annotations

from tests.architectures.audio import AUDIO
from tests.architectures.control import CONTROL
from tests.architectures.densities import DENSITIES
from tests.architectures.describe import Architecture
from tests.architectures.detection import DETECTION
from tests.architectures.diffusion import DIFFUSION
from tests.architectures.graphs import GRAPHS
from tests.architectures.language import DECODERS, ENCODER_DECODERS, ENCODERS
from tests.architectures.mixers import EXPERTS, STATE_SPACES
from tests.architectures.multimodal import MULTIMODAL
from tests.architectures.proteins import PROTEINS
from tests.architectures.recommendation import RECOMMENDATION
from tests.architectures.segmentation import SEGMENTATION
from tests.architectures.series import SERIES
from tests.architectures.tables import TABLES
from tests.architectures.vision import VISION

__all__ = ["ARCHITECTURES", "Architecture"]

ARCHITECTURES: tuple[Architecture, ...] = (
    *ENCODERS,
    *DECODERS,
    *ENCODER_DECODERS,
    *STATE_SPACES,
    *EXPERTS,
    *VISION,
    *DETECTION,
    *SEGMENTATION,
    *DIFFUSION,
    *AUDIO,
    *MULTIMODAL,
    *SERIES,
    *PROTEINS,
    *GRAPHS,
    *RECOMMENDATION,
    *TABLES,
    *DENSITIES,
    *CONTROL,
)
