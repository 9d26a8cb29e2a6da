"""Datasets, images, samplers and transforms.

``load_dataset`` reads the labels, ``ImageStore`` the pixels, ``PKSampler`` says which images make a batch,
``TrainTransform`` varies them and ``OccludedCopy`` makes moved and covered copies. For video ``load_video_dataset``
reads tracklets, ``ClipSampling`` says which of their frames make a clip, and ``ClipStore`` reads and pads them.
"""

from motarfuse.data.any_dataset import load_any_dataset
from motarfuse.data.check import DatasetReport, check_dataset
from motarfuse.data.clip_store import Clip, ClipBatch, ClipStore
from motarfuse.data.clips import ClipSampling
from motarfuse.data.convert import convert_dataset
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
from motarfuse.data.stats import dataset_stats
from motarfuse.data.tracklet_manifest import read_tracklet_manifest
from motarfuse.data.tracklets import Tracklet, TrackletDataset
from motarfuse.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from motarfuse.data.video_registry import VIDEO_KINDS, VideoKind, load_video_dataset
from motarfuse.data.warp import Warp

__all__ = [
    "DISTRACTOR_PID",
    "JUNK_PID",
    "KINDS",
    "UNKNOWN_CAMERA",
    "VIDEO_KINDS",
    "AugmentConfig",
    "Clip",
    "ClipBatch",
    "ClipSampling",
    "ClipStore",
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
    "Tracklet",
    "TrackletDataset",
    "TrainTransform",
    "VideoKind",
    "Warp",
    "check_dataset",
    "contiguous_labels",
    "convert_dataset",
    "dataset_stats",
    "load_any_dataset",
    "load_dataset",
    "load_video_dataset",
    "read_image",
    "read_images",
    "read_tracklet_manifest",
    "scan_images",
]
