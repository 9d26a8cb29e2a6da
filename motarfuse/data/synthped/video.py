"""SynthPed's video protocol in memory: which tracklets there are, drawn on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from motarfuse.data.synthped import gait, layout, raster, truth, video_scene
from motarfuse.data.synthped.config import SynthPedConfig
from motarfuse.data.synthped.dataset import BLOCK, SynthPedImages
from motarfuse.data.synthped.draws import Draws, keys
from motarfuse.data.synthped.video_scene import Ints, Tracklets

# Sets of tracklets: bbox_train and bbox_test, in which queries and gallery lie together, as in MARS.
VIDEO_SETS = ("video_train", "video_test")

# People of videos are nobody of the images.
_PEOPLE = 2_000_000_000
_DISTRACTORS = _PEOPLE + 100_000_000


@dataclass(frozen=True)
class SynthPedFrames:
    """Drawn frames with their ground truth; n rows, those of a tracklet together and in the order of time."""

    truth: SynthPedImages  # images and what is true of each
    tracklet: NDArray[np.int64]  # (n,) row of the set's tracklets
    frame: NDArray[np.int64]  # (n,) number of the frame from 1, with gaps where frames are missing
    phase: NDArray[np.float32]  # (n,) of the walking cycle, in [0, 1); the left heel is set down at 0

    def __len__(self) -> int:
        return len(self.frame)

    def without_pixels(self) -> SynthPedFrames:
        """The ground truth alone, with an empty ``truth.images``."""
        return replace(self, truth=self.truth.without_pixels())

    @staticmethod
    def join(blocks: list[SynthPedFrames]) -> SynthPedFrames:
        """All rows of several blocks, in order."""
        rest = [f.name for f in fields(SynthPedFrames) if f.name != "truth"]
        return SynthPedFrames(
            truth=SynthPedImages.join([block.truth for block in blocks]),
            **{name: np.concatenate([getattr(block, name) for block in blocks]) for name in rest},
        )


class SynthPedVideo:
    """Tracklets of drawn people who walk.

    >>> video = SynthPedVideo(SynthPedConfig(seed=1, video_test_ids=6))
    >>> tracklets, frames = video.tracklets("video_test"), video.frames("video_test")
    """

    def __init__(self, config: SynthPedConfig | None = None) -> None:
        self.config = config or SynthPedConfig()

    def tracklets(self, name: str) -> Tracklets:
        """The tracklets of one set, sorted by person, camera and number; distractors (person id 0) come first.

        Raises:
            ValueError: For a name that is not in `VIDEO_SETS`.
        """
        if name not in VIDEO_SETS:
            raise ValueError(f"there is no set {name!r}; there are {', '.join(VIDEO_SETS)}")
        c = self.config
        first, count = (0, c.video_train_ids) if name == "video_train" else (c.video_train_ids, c.video_test_ids)
        person = first + np.arange(count)
        dresser = first + gait.clothes_leaders(count, c.same_clothes_share)
        own = Draws(keys(c.seed, "video person", person))
        # Two cameras of all, or three where there are as many.
        seen = 2 + (own.chance("third camera", 0.5) & (c.cameras > 2))
        rank = own.uniform("cameras", columns=c.cameras).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        at, camera = np.nonzero(rank < seen[:, None])
        often = 1 + Draws(keys(c.seed, "video visits", person[at], camera)).integer("visits", c.video_tracklets)
        at, camera = np.repeat(at, often), np.repeat(camera, often)
        number = np.concatenate([np.arange(k) for k in often.tolist()] or [np.arange(0)])
        pid, who, clothes = person[at] + 1, _PEOPLE + person[at], _PEOPLE + dresser[at]
        if name == "video_test":
            extra = np.arange(c.video_distractors)
            lens = extra % c.cameras
            order = np.argsort(lens, kind="stable")
            strangers = _DISTRACTORS + extra[order] * c.confusers
            pid = np.concatenate([np.zeros(len(extra), np.int64), pid])
            who, clothes = np.concatenate([strangers, who]), np.concatenate([strangers, clothes])
            camera = np.concatenate([lens[order], camera])
            number = np.concatenate([(extra // c.cameras)[order], number])
        key = Draws(keys(c.seed, "tracklet", who, camera, number))
        least, most = c.video_frames
        # Short ones are more common than long ones.
        share = key.uniform("length")
        length = least + np.minimum(((most - least + 1) * share * np.sqrt(share)).astype(np.int64), most - least)
        return Tracklets(who, clothes, pid, camera, number + 1, length)

    def frame_rows(self, tracklets: Tracklets) -> tuple[Ints, Ints]:
        """For each frame its tracklet's row and its number from 1, with gaps."""
        c = self.config
        row = np.repeat(np.arange(len(tracklets)), tracklets.length)
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(tracklets.length)])[:-1]
        place = np.arange(len(row)) - start[row]
        draws = Draws(keys(c.seed, "gap", tracklets.identity[row], tracklets.camera[row], tracklets.number[row], place))
        step = 1 + draws.chance("gap", c.video_missing) * (1 + draws.integer("size", 3))
        step[place == 0] = 1
        total = np.cumsum(step)
        before = (total - step)[start] if len(start) else total
        return row, total - before[row]

    def queries(self, tracklets: Tracklets) -> Ints:
        """Rows of the query tracklets of a test set: each person's first one in each camera."""
        return np.flatnonzero((tracklets.pid > 0) & (tracklets.number == 1))

    def same_clothes(self, name: str) -> list[list[int]]:
        """Groups of person ids who wear the same clothes.

        Raises:
            ValueError: For a name that is not in `VIDEO_SETS`.
        """
        tracklets = self.tracklets(name)
        groups: dict[int, set[int]] = {}
        for clothes, pid in zip(tracklets.clothes.tolist(), tracklets.pid.tolist(), strict=True):
            groups.setdefault(clothes, set()).add(pid)
        return [sorted(group) for group in groups.values() if len(group) > 1]

    def blocks(self, tracklets: Tracklets, frames: int = BLOCK) -> Iterator[slice]:
        """Runs of tracklets with about ``frames`` frames together, at least one tracklet each."""
        start, total = 0, 0
        for row, length in enumerate(tracklets.length.tolist()):
            if row > start and total + length > frames:
                yield slice(start, row)
                start, total = row, 0
            total += length
        if start < len(tracklets):
            yield slice(start, len(tracklets))

    def draw(self, tracklets: Tracklets, first: int = 0, *, threads: int = 1, impl: str = "auto") -> SynthPedFrames:
        """Draws all frames of the given tracklets; each tracklet depends on its own row only.

        Args:
            tracklets: Which.
            first: Row of the first one in its set, which is added to ``tracklet`` of the result.
            threads: Threads of the rasteriser.
            impl: ``auto``, ``host`` or ``numpy``: the same pixels.
        """
        c = self.config
        row, frame = self.frame_rows(tracklets)
        film = video_scene.film(c, tracklets, row, frame)
        images, parts, amodal = raster.render(film.scenes, c.size, threads=threads, impl=impl)
        before = (parts == layout.OCCLUDER).any(axis=(1, 2))
        return SynthPedFrames(
            truth=SynthPedImages(
                images=images,
                pids=tracklets.pid[row],
                camids=tracklets.camera[row],
                parts=parts,
                amodal=amodal,
                keypoints=film.keypoints,
                visibility=truth.visibility(film.keypoints, film.facing, parts, amodal),
                occluded_share=truth.occluded_share(parts, amodal),
                in_frame=film.in_frame,
                occluder=np.where(before, film.occluder, -1),
            ),
            tracklet=first + row,
            frame=frame,
            phase=film.phase,
        )

    def frames(self, name: str, *, threads: int = 2, impl: str = "auto", limit: int | None = None) -> SynthPedFrames:
        """Draws a whole set (or its first ``limit`` tracklets) into memory.

        Args:
            name: One of `VIDEO_SETS`.
            threads: Threads of the rasteriser.
            impl: ``auto``, ``host`` or ``numpy``: the same pixels.
            limit: At most so many tracklets.
        """
        tracklets = self.tracklets(name)
        if limit is not None:
            tracklets = tracklets.take(slice(0, limit))
        blocks = [
            self.draw(tracklets.take(rows), rows.start, threads=threads, impl=impl) for rows in self.blocks(tracklets)
        ]
        return SynthPedFrames.join(blocks or [self.draw(tracklets, impl=impl)])
