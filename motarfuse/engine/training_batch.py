"""What a training step sees: batches of images or of clips, varied, with changed copies of some of them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from motarfuse.data import (
    Clip,
    ClipStore,
    ImageStore,
    OccludedCopy,
    PKSampler,
    TrainTransform,
)
from motarfuse.engine.config import Config
from motarfuse.engine.criterion import ClipFrames, Copies
from motarfuse.engine.random import AUGMENTATION, CLIPS, COPIES, PAIRS, stream_seed
from motarfuse.models import MotarFuse, MotarFuseOutput, ReIDOutput
from motarfuse.nn import BNNeck, PartState


class Batch(NamedTuple):
    """Pixels of one batch.

    Attributes:
        indices: Of the records.
        pixels: uint8 (B, 3, H, W), or (B, T, 3, H, W) for clips.
        frame_mask: (B, T) bool of clips, None for images.
        frame_index: (B, T) integers of clips, None for images.
    """

    indices: Sequence[int]
    pixels: Tensor
    frame_mask: Tensor | None = None
    frame_index: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """Frames that are there."""
        return len(self.pixels) if self.frame_mask is None else int(self.frame_mask.sum())


class Batches:
    """The batches of a training run, each a function of the run's seed and the batch's number.

    Args:
        store: Images or tracklets.
        sampler: Which records make a batch.
        config: Of the run.
    """

    def __init__(self, store: ImageStore | ClipStore, sampler: PKSampler, config: Config) -> None:
        self.store = store
        self.sampler = sampler
        self.seed = config.train.seed
        self.config = config.clip
        self.sampling = self.config.training_sampling()

    def read(self, places: Iterable[int]) -> Generator[Batch, None, None]:
        """Batches by number, read ahead; closing it ends the reading."""
        if isinstance(self.store, ImageStore):
            for indices, pixels in self.store.prefetch(map(self.sampler.batch, places)):
                yield Batch(indices, pixels)
            return
        for found in self.store.prefetch(map(self._clips, places)):
            yield Batch([clip.tracklet for clip in found.clips], found.images, found.frame_mask, found.frame_index)

    def _clips(self, place: int) -> list[Clip]:
        random = np.random.Generator(np.random.PCG64(stream_seed(self.seed, CLIPS, place)))
        records = self.store.records
        clips = []
        for tracklet in self.sampler.batch(place):
            frames = self.sampling.clips(len(records[tracklet]), random)[0]  # type: ignore[arg-type]
            if random.random() < self.config.image_share:
                frames = [frames[int(random.integers(len(frames)))]]
            clips.append(Clip(tracklet, frames))
        return clips


class StepInput(NamedTuple):
    """A varied batch, as `run_network` and the loss take it.

    Attributes:
        images: float32 (B, 3, H, W) or (B, T, 3, H, W).
        labels, camids: (B,), and those of the copies behind them, (B + C,).
        frame_mask, frame_index: (B, T) of clips.
        copied: (C, 3, H, W) the changed copies; None without.
        copies: What is known of them.
        frames: Which frames of clips the loss reads; None for images.
    """

    images: Tensor
    labels: Tensor
    camids: Tensor
    frame_mask: Tensor | None
    frame_index: Tensor | None
    copied: Tensor | None
    copies: Copies | None
    frames: ClipFrames | None


class Varier:
    """Augmentation, changed copies and pairs of frames, a function of seed, step and number of the batch.

    Of a clip one frame is copied, as an image of its own: the network sees clips and images in one step.

    Args:
        config: Of the run.
        grid: (h, w) of the network's cells where it has parts.
        device: Where to compute.
    """

    def __init__(self, config: Config, grid: tuple[int, int] | None, device: torch.device) -> None:
        self.seed, self.share = config.train.seed, config.copy.share
        self.transform = TrainTransform(config.augment)
        self.copy = OccludedCopy(config.copy)
        self.grid = grid
        self.device = device
        self.with_pairs = grid is not None and config.loss.motion_weight > 0 and config.loss.rec_weight > 0

    def __call__(self, batch: Batch, labels: Tensor, camids: Tensor, step: int, number: int) -> StepInput:
        """Varies a batch.

        Args:
            batch: Pixels.
            labels, camids: (B,) on the CPU, where the donors of patches are chosen without waiting for the device.
            step: Of the training.
            number: Of the batch within the step.
        """
        key = (step, number)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, AUGMENTATION, *key))
        images = self.transform(batch.pixels.to(self.device, non_blocking=True), generator)
        count = round(self.share * len(images))
        copied, copies = None, None
        both = [labels], [camids]
        if count and batch.frame_mask is not None:
            count = min(max(count, 2), len(images))  # they are normalised among themselves
        if count:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, COPIES, *key))
            rows = torch.randperm(len(images), generator=generator)[:count].sort().values
            frames, donors = rows, images
            if batch.frame_mask is not None:
                shown = torch.multinomial(batch.frame_mask.float(), 1, generator=generator).squeeze(1)
                frames = rows * images.shape[1] + shown[rows]
                donors = images[torch.arange(len(images)), shown]
            changed = self.copy(donors[rows.to(self.device)], generator, donors, labels[rows], labels)
            covered = images.new_empty(0) if self.grid is None else changed.covered_share_of_cells(self.grid)
            copied = changed.images
            copies = Copies(rows.to(self.device), frames.to(self.device), changed.warp, covered)
            both = [labels, labels[rows]], [camids, camids[rows]]
        mask, index = (
            None if tensor is None else tensor.to(self.device, non_blocking=True)
            for tensor in (batch.frame_mask, batch.frame_index)
        )
        return StepInput(
            images,
            torch.cat(both[0]).to(self.device, non_blocking=True),
            torch.cat(both[1]).to(self.device, non_blocking=True),
            mask,
            index,
            copied,
            copies,
            None if batch.frame_mask is None else self._frames(images, batch.frame_mask, count, key),
        )

    def _frames(self, images: Tensor, mask: Tensor, copies: int, key: tuple[int, int]) -> ClipFrames:
        """The frames that are there, and two of each clip that has two."""
        there = torch.cat((mask.flatten(), mask.new_ones(copies))).nonzero().squeeze(1)
        rows = (mask.sum(1) > 1).nonzero().squeeze(1) if self.with_pairs else torch.empty(0, dtype=torch.int64)
        places = torch.empty(2, 0, dtype=torch.int64)
        if len(rows):
            generator = torch.Generator().manual_seed(stream_seed(self.seed, PAIRS, *key))
            drawn = torch.multinomial(mask[rows].float(), 2, generator=generator)
            places = (rows[:, None] * mask.shape[1] + drawn).T
        flat = images.flatten(0, 1)
        source, target = (place.to(self.device) for place in places)
        return ClipFrames(there.to(self.device), source, target, flat[source], flat[target])


def run_network(model: nn.Module, batch: StepInput) -> ReIDOutput:
    """The network's output of a batch, that of the copies behind it.

    Copies of images join their batch; copies of clips, single frames, are a batch of their own, which the necks
    normalise by its own statistics.
    """
    has_parts = isinstance(model, MotarFuse)
    images, camids, copied = batch.images, batch.camids, batch.copied
    if batch.frame_mask is None:
        extra = {}
        if copied is not None:
            if has_parts:
                extra["counted"] = torch.arange(len(camids), device=images.device) < len(images)
            images = torch.cat((images, copied))
        output: ReIDOutput = model(images, camids, **extra)
        return output
    output = model(images, camids[: len(images)], batch.frame_mask, batch.frame_index)
    if copied is None:
        return output
    extra = {"counted": torch.zeros(len(copied), dtype=torch.bool, device=images.device)} if has_parts else {}
    with _uncounted(model):
        changed = model(copied, camids[len(images) :], **extra)
    return _joined(output, changed)


@contextmanager
def _uncounted(model: nn.Module) -> Iterator[None]:
    """Keeps a batch out of the running statistics of batch normalisation, which are of clips."""
    norms = [module for module in model.modules() if isinstance(module, BNNeck)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _joined(clips: ReIDOutput, images: ReIDOutput) -> ReIDOutput:
    """Outputs of clips and of images as the loss reads them: by person, and states by frame."""
    names = ["feature", "embedding"]
    if isinstance(clips, MotarFuseOutput):
        names += ["part_features", "part_embeddings", "part_visibility", "class_feature"]
    values = {name: torch.cat((getattr(clips, name), getattr(images, name))) for name in names}
    if isinstance(clips, MotarFuseOutput) and isinstance(images, MotarFuseOutput):
        states = tuple(PartState.cat(pair) for pair in zip(clips.states, images.states, strict=True))
        return replace(clips, **values, states=states)
    return replace(clips, **values)
