"""SynthPed: procedurally drawn pedestrians, the embedded benchmark (see docs/synthped.md)."""

from motarfuse.data.synthped.config import PROTOCOLS, VERSION, SynthPedConfig
from motarfuse.data.synthped.dataset import SETS, SynthPed, SynthPedImages
from motarfuse.data.synthped.layout import KEYPOINTS, PARTS
from motarfuse.data.synthped.occluders import OCCLUDERS
from motarfuse.data.synthped.write import write_synthped

__all__ = [
    "KEYPOINTS",
    "OCCLUDERS",
    "PARTS",
    "PROTOCOLS",
    "SETS",
    "VERSION",
    "SynthPed",
    "SynthPedConfig",
    "SynthPedImages",
    "write_synthped",
]
