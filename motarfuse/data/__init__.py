"""Datasets, images, samplers and transforms.

``load_dataset`` reads the labels, ``ImageStore`` the pixels, ``PKSampler`` says which images make a batch,
``TrainTransform`` varies them and ``OccludedCopy`` makes moved and covered copies.
"""

from motarfuse.data.check import DatasetReport, check_dataset
from motarfuse.data.files import scan_images
from motarfuse.data.images import ImageReadError, read_image, read_images
from motarfuse.data.loader import ImageStore
from motarfuse.data.occluded_copy import CopiedBatch, OccludedCopy, OccludedCopyConfig
from motarfuse.data.records import (
    DISTRACTOR_PID,
    JUNK_PID,
    UNKNOWN_CAMERA,
    ImageRecord,
    ReIDDataset,
    Skipped,
    SplitCounts,
    contiguous_labels,
)
from motarfuse.data.registry import KINDS, DatasetKind, load_dataset
from motarfuse.data.samplers import PKSampler
from motarfuse.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from motarfuse.data.warp import Warp

__all__ = [
    "DISTRACTOR_PID",
    "JUNK_PID",
    "KINDS",
    "UNKNOWN_CAMERA",
    "AugmentConfig",
    "CopiedBatch",
    "DatasetKind",
    "DatasetReport",
    "EvalTransform",
    "ImageReadError",
    "ImageRecord",
    "ImageStore",
    "OccludedCopy",
    "OccludedCopyConfig",
    "PKSampler",
    "ReIDDataset",
    "Skipped",
    "SplitCounts",
    "TrainTransform",
    "Warp",
    "check_dataset",
    "contiguous_labels",
    "load_dataset",
    "read_image",
    "read_images",
    "scan_images",
]
