"""SynthPed in memory: which images a benchmark has, drawn on demand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import raster, scene, truth
from motarfuse.data.synthped.config import PROTOCOLS, SynthPedConfig
from motarfuse.data.synthped.draws import Draws, keys
from motarfuse.data.synthped.scene import Shots

# Sets of images; every protocol is a training set, a query set and a gallery of these.
SETS = ("train", "gallery", "query_holistic", "query_occluded", "query_partial")

# Images laid out at once: enough to spread the interpreter's time over, small enough to stay in the caches.
BLOCK = 512

# An occluder that hides too little or too much is drawn again in other sizes, relative to the last one.
_RATIO = np.ones(1)
_LADDER = np.asarray([0.4, 0.6, 0.8, 1.2, 1.6, 2.4])


@dataclass(frozen=True)
class SynthPedImages:
    """Drawn images with their ground truth; n rows."""

    images: NDArray[np.uint8]  # (n, height, width, 3) RGB
    pids: NDArray[np.int64]  # person id as in the file names, 0 for a distractor
    camids: NDArray[np.int64]  # 0-based
    parts: NDArray[np.uint8]  # (n, height, width) visible part labels
    amodal: NDArray[np.uint8]  # (n, height, width) part labels as if no occluder were there
    keypoints: NDArray[np.float32]  # (n, 17, 2) pixels, x first, also outside the crop
    visibility: NDArray[np.uint8]  # (n, 17) 0 out of frame, 1 behind an occluder, 2 behind the own body, 3 visible
    occluded_share: NDArray[np.float32]  # (n,) of the body's pixels inside the crop
    in_frame: NDArray[np.float32]  # (n,) share of the body's box inside the crop
    occluder: NDArray[np.int64]  # (n,) index into OCCLUDERS, -1 for none

    def __len__(self) -> int:
        return len(self.pids)

    def without_pixels(self) -> SynthPedImages:
        """The ground truth alone, with an empty `images`."""
        return replace(self, images=self.images[:0])

    @staticmethod
    def join(blocks: list[SynthPedImages]) -> SynthPedImages:
        """All rows of several blocks, in order."""
        return SynthPedImages(
            **{f.name: np.concatenate([getattr(b, f.name) for b in blocks]) for f in fields(SynthPedImages)}
        )


class SynthPed:
    """A benchmark of drawn pedestrians.

    >>> images = SynthPed(SynthPedConfig(seed=1, test_ids=8)).images("query_occluded")
    """

    def __init__(self, config: SynthPedConfig | None = None) -> None:
        self.config = config or SynthPedConfig()

    def shots(self, name: str) -> Shots:
        """The images of one set: who, by which camera, of which kind.

        Raises:
            ValueError: For a name that is not in `SETS`.
        """
        if name not in SETS:
            raise ValueError(f"there is no set {name!r}; there are {', '.join(SETS)}")
        c = self.config
        if name == "train":
            identity, camera = self._grid(0, c.train_ids, c.images_per_camera)
        else:
            per_camera = c.gallery_per_camera if name == "gallery" else c.query_per_camera
            identity, camera = self._grid(c.train_ids, c.test_ids, per_camera)
        if name == "gallery":
            # Distractors come in one image each, dressed like nobody else.
            extra = np.arange(c.distractors)
            identity = np.concatenate([identity, scene.DISTRACTORS + extra * c.confusers])
            camera = np.concatenate([camera, extra % c.cameras])
        n = len(identity)
        key = (SETS.index(name) + 1) * 10_000_000 + np.arange(n)
        kind = np.full(n, scene.FULL)
        if name == "train":
            chance = Draws(keys(c.seed, "kind", key)).uniform("kind")
            kind = np.where(chance < c.train_occluded, scene.OCCLUDED, kind)
            kind = np.where(chance >= 1.0 - c.train_partial, scene.PARTIAL, kind)
        elif name == "query_occluded":
            kind[:] = scene.OCCLUDED
        elif name == "query_partial":
            kind[:] = scene.PARTIAL
        return Shots(identity, camera, key, kind)

    def _grid(self, first: int, ids: int, per_camera: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        cameras = self.config.cameras
        identity = np.repeat(first + np.arange(ids), cameras * per_camera)
        camera = np.tile(np.repeat(np.arange(cameras), per_camera), ids)
        return identity, camera

    def pids(self, shots: Shots) -> NDArray[np.int64]:
        """Person ids from 1 on; 0 for distractors."""
        return np.where(shots.identity >= scene.DISTRACTORS, 0, shots.identity + 1)

    def _outside(self, kind: NDArray[np.int64], share: NDArray[np.float32]) -> NDArray[np.bool_]:
        low, high = self.config.occlusion
        return (kind == scene.OCCLUDED) & ((share < low) | (share > high))

    def draw(self, shots: Shots, *, threads: int = 1, impl: str = "auto") -> SynthPedImages:
        """Draws the given images; each depends on its own row only.

        Args:
            shots: The images.
            threads: Threads of the rasteriser.
            impl: ``auto``, ``host`` or ``numpy``: the same pixels.
        """
        c = self.config
        n = len(shots)
        size = np.ones(n)
        prepared = scene.prepare(c, shots)
        images, parts, amodal = raster.render(prepared.scenes(np.arange(n), size), c.size, threads=threads, impl=impl)
        share = truth.occluded_share(parts, amodal)
        low, high = c.occlusion
        wrong = np.flatnonzero(self._outside(shots.kind, share))
        # First by the ratio to what was asked for, then the best of a ladder of sizes.
        for ladder in (_RATIO, _LADDER):
            if len(wrong) == 0:
                break
            m = len(wrong)
            target = np.clip(prepared.asked[wrong], low + 0.15 * (high - low), high - 0.15 * (high - low))
            if ladder is _RATIO:
                size[wrong] *= np.clip(target / np.maximum(share[wrong], 0.04), 0.4, 2.5)
            sizes = (size[wrong][:, None] * ladder).reshape(-1)
            drawn = raster.render(
                prepared.scenes(np.repeat(wrong, len(ladder)), sizes), c.size, threads=threads, impl=impl
            )
            shares = truth.occluded_share(drawn[1], drawn[2]).reshape(m, -1)
            best = np.abs(shares - target[:, None]).argmin(axis=1)
            row = np.arange(m) * len(ladder) + best
            images[wrong], parts[wrong], amodal[wrong] = (array[row] for array in drawn)
            share[wrong], size[wrong] = shares[np.arange(m), best], sizes[row]
            wrong = wrong[self._outside(shots.kind[wrong], share[wrong])]
        return SynthPedImages(
            images=images,
            pids=self.pids(shots),
            camids=shots.camera,
            parts=parts,
            amodal=amodal,
            keypoints=prepared.keypoints,
            visibility=truth.visibility(prepared.keypoints, prepared.facing, parts, amodal),
            occluded_share=share,
            in_frame=prepared.in_frame,
            occluder=prepared.occluder,
        )

    def images(self, name: str, *, threads: int = 2, impl: str = "auto", limit: int | None = None) -> SynthPedImages:
        """Draws a whole set (or its first ``limit`` images) into memory.

        Args:
            name: One of `SETS`; `protocol` says which sets a protocol uses.
            threads: Threads of the rasteriser.
            impl: ``auto``, ``host`` or ``numpy``: the same pixels.
            limit: At most so many images.
        """
        shots = self.shots(name)
        n = len(shots) if limit is None else min(limit, len(shots))
        blocks = [
            self.draw(shots.take(slice(i, min(i + BLOCK, n))), threads=threads, impl=impl) for i in range(0, n, BLOCK)
        ]
        return SynthPedImages.join(blocks or [self.draw(shots.take(slice(0, 0)), impl=impl)])

    @staticmethod
    def protocol(name: str) -> dict[str, str]:
        """Which set each Market-1501 folder of a protocol holds.

        Raises:
            ValueError: For an unknown protocol.
        """
        if name not in PROTOCOLS:
            raise ValueError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
        return {"bounding_box_train": "train", "query": f"query_{name}", "bounding_box_test": "gallery"}
