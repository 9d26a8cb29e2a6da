"""Networks that turn person crops into features, one registry for all of them."""

from motarfuse.models.load_vit import load_vit
from motarfuse.models.motar_fuse import MotarFuse, MotarFuseConfig
from motarfuse.models.output import MotarFuseOutput, ReIDOutput
from motarfuse.models.packaged import load_packaged, packaged_names
from motarfuse.models.pretrained import LoadReport, load_pretrained
from motarfuse.models.registry import build_model, config_class, model_name_of, model_names, register_model
from motarfuse.models.vit_reid import SIZES, VitReID, VitReIDConfig

__all__ = [
    "SIZES",
    "LoadReport",
    "MotarFuse",
    "MotarFuseConfig",
    "MotarFuseOutput",
    "ReIDOutput",
    "VitReID",
    "VitReIDConfig",
    "build_model",
    "config_class",
    "load_packaged",
    "load_pretrained",
    "load_vit",
    "model_name_of",
    "model_names",
    "packaged_names",
    "register_model",
]
