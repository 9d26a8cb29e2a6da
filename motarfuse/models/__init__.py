"""Networks that turn person crops into features, one registry for all of them."""

from motarfuse.models.output import ReIDOutput
from motarfuse.models.pretrained import LoadReport, load_pretrained
from motarfuse.models.registry import build_model, config_class, model_name_of, model_names, register_model
from motarfuse.models.vit_reid import SIZES, VitReID, VitReIDConfig

__all__ = [
    "SIZES",
    "LoadReport",
    "ReIDOutput",
    "VitReID",
    "VitReIDConfig",
    "build_model",
    "config_class",
    "load_pretrained",
    "model_name_of",
    "model_names",
    "register_model",
]
