"""Training, evaluation and extraction: configs, checkpoints, the training loop."""

from motarfuse.engine.checkpoint import find_checkpoint, load_checkpoint, load_model, save_checkpoint
from motarfuse.engine.config import Config, describe_config, load_config
from motarfuse.engine.evaluator import Evaluation, evaluate_checkpoint
from motarfuse.engine.extractor import ExtractResult, encode, extract
from motarfuse.engine.trainer import TrainResult, train

__all__ = [
    "Config",
    "Evaluation",
    "ExtractResult",
    "TrainResult",
    "describe_config",
    "encode",
    "evaluate_checkpoint",
    "extract",
    "find_checkpoint",
    "load_checkpoint",
    "load_config",
    "load_model",
    "save_checkpoint",
    "train",
]
