"""SynthPed: procedurally drawn pedestrians, the embedded benchmark (see docs/synthped.md)."""

from motarfuse.data.synthped.config import ALL_PROTOCOLS, PROTOCOLS, VERSION, VIDEO, SynthPedConfig
from motarfuse.data.synthped.dataset import SETS, SynthPed, SynthPedImages
from motarfuse.data.synthped.layout import KEYPOINTS, PARTS
from motarfuse.data.synthped.occluders import OCCLUDERS
from motarfuse.data.synthped.video import VIDEO_SETS, SynthPedFrames, SynthPedVideo
from motarfuse.data.synthped.write import write_synthped

__all__ = [
    "ALL_PROTOCOLS",
    "KEYPOINTS",
    "OCCLUDERS",
    "PARTS",
    "PROTOCOLS",
    "SETS",
    "VERSION",
    "VIDEO",
    "VIDEO_SETS",
    "SynthPed",
    "SynthPedConfig",
    "SynthPedFrames",
    "SynthPedImages",
    "SynthPedVideo",
    "write_synthped",
]
