"""The settings of a SynthPed benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from motarfuse.errors import ConfigError

# Raised whenever the pixels of a given seed change; stored in every manifest.
VERSION = 1

PROTOCOLS = ("holistic", "occluded", "partial")
# Tracklets instead of images, in the layout of MARS; drawn only when it is asked for.
VIDEO = "video"
ALL_PROTOCOLS = (*PROTOCOLS, VIDEO)


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class SynthPedConfig:
    """What is drawn. The same settings give the same pixels on every machine, with any number of workers."""

    seed: int = _field(0, "seed of everything that is drawn")
    train_ids: int = _field(150, "identities of the training folder")
    test_ids: int = _field(50, "identities of query and gallery, disjoint from the training ones")
    cameras: int = _field(4, "cameras, 2 to 9 (the Market-1501 name has one digit for it)")
    images_per_camera: int = _field(5, "training images of an identity in each camera")
    gallery_per_camera: int = _field(2, "gallery images of a test identity in each camera")
    query_per_camera: int = _field(1, "query images of a test identity in each camera")
    distractors: int = _field(50, "gallery images of people who are no query (person id 0)")
    size: tuple[int, int] = _field((128, 64), "height and width of a crop in pixels")
    confusers: int = _field(2, "identities that share the colours of their clothes; 1 means nobody does")
    camera_variety: float = _field(
        0.7, "how much of a camera's look changes from image to image: 0 a fixed camera, 1 a new one for every image"
    )
    camera_strength: float = _field(
        0.3, "how far cameras differ in colour, exposure, light, blur and noise: 0 not at all, 1 as far as bad ones do"
    )
    train_occluded: float = _field(0.35, "share of the training images with an occluder")
    train_partial: float = _field(0.1, "share of the training images that show a part of the body only")
    occlusion: tuple[float, float] = _field((0.1, 0.4), "least and largest share of the body that an occluder hides")
    partial: tuple[float, float] = _field((0.35, 0.7), "least and largest share of the body that a partial crop keeps")
    jitter: float = _field(0.04, "inaccuracy of the boxes, in heights of the body")
    video_train_ids: int = _field(40, "video: identities of bbox_train")
    video_test_ids: int = _field(30, "video: identities of bbox_test; each is seen by 2 or 3 cameras")
    video_tracklets: int = _field(2, "video: most tracklets of an identity in one camera, 1 to 99")
    video_frames: tuple[int, int] = _field((8, 32), "video: least and largest number of frames of a tracklet")
    video_fps: float = _field(12.5, "video: frames a second, 5 to 60")
    video_missing: float = _field(0.06, "video: how often one to three frames are missing between two of a tracklet")
    video_occluded: float = _field(0.5, "video: share of the tracklets in which something passes before the person")
    video_distractors: int = _field(10, "video: gallery tracklets of people who are no query (person id 0)")
    same_clothes_share: float = _field(
        0.3, "video: share of the identities who wear the same clothes as two others; body, hair and gait are their own"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self._pair("size", int))
        object.__setattr__(self, "occlusion", self._pair("occlusion", float))
        object.__setattr__(self, "partial", self._pair("partial", float))
        object.__setattr__(self, "video_frames", self._pair("video_frames", int))
        for name in ("test_ids", "video_test_ids", "images_per_camera", "gallery_per_camera", "query_per_camera"):
            self._whole(name, 1)
        for name in ("train_ids", "distractors", "video_train_ids", "video_distractors"):
            self._whole(name, 0)
        self._whole("seed", 0)
        self._whole("confusers", 1)
        self._whole("cameras", 2, 9)
        self._whole("video_tracklets", 1, 99)
        if self.train_ids + self.test_ids > 9999:
            raise ConfigError(
                f"synthped: {self.train_ids} + {self.test_ids} identities do not fit into the four digits of a "
                "Market-1501 name; ask for 9999 at most"
            )
        if self.video_train_ids + self.video_test_ids > 9999 or self.video_distractors > 9999:
            raise ConfigError(
                f"synthped: {self.video_train_ids} + {self.video_test_ids} identities or {self.video_distractors} "
                "distractors do not fit into the four digits of a MARS name; ask for 9999 at most"
            )
        if not 2 <= self.video_frames[0] <= self.video_frames[1] <= 200:
            raise ConfigError(
                f"synthped: video_frames must be two numbers of frames in 2..200, the least first, got "
                f"{self.video_frames}"
            )
        if not 5.0 <= self.video_fps <= 60.0:
            raise ConfigError(f"synthped: video_fps must be in [5, 60], got {self.video_fps}")
        if not 0.0 <= self.video_missing <= 0.5:
            raise ConfigError(f"synthped: video_missing must be in [0, 0.5], got {self.video_missing}")
        if not all(32 <= side <= 1024 for side in self.size):
            raise ConfigError(f"synthped: size must be height and width in 32..1024 pixels, got {self.size}")
        for name in (
            "camera_variety",
            "camera_strength",
            "train_occluded",
            "train_partial",
            "video_occluded",
            "same_clothes_share",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"synthped: {name} must be in [0, 1], got {getattr(self, name)}")
        if self.train_occluded + self.train_partial > 1.0:
            raise ConfigError("synthped: train_occluded + train_partial must not exceed 1")
        if not 0.0 <= self.jitter <= 0.2:
            raise ConfigError(f"synthped: jitter must be in [0, 0.2], got {self.jitter}")
        if not 0.05 <= self.occlusion[0] < self.occlusion[1] <= 0.8 or self.occlusion[1] - self.occlusion[0] < 0.1:
            raise ConfigError(
                f"synthped: occlusion must be two shares in [0.05, 0.8], at least 0.1 apart, got {self.occlusion}"
            )
        if not 0.2 <= self.partial[0] < self.partial[1] <= 0.95:
            raise ConfigError(f"synthped: partial must be two growing shares in [0.2, 0.95], got {self.partial}")

    def _pair(self, name: str, kind: type) -> tuple[Any, Any]:
        value = getattr(self, name)
        if not isinstance(value, (tuple, list)) or len(value) != 2 or any(isinstance(v, (str, bool)) for v in value):
            raise ConfigError(f"synthped: {name} must be two numbers, got {value!r}")
        if kind is int and any(int(v) != v for v in value):
            raise ConfigError(f"synthped: {name} must be two whole numbers, got {value!r}")
        return kind(value[0]), kind(value[1])

    def _whole(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < least
            or (most is not None and value > most)
        ):
            bounds = f"at least {least}" if most is None else f"in {least}..{most}"
            raise ConfigError(f"synthped: {name} must be a whole number {bounds}, got {value!r}")

    def with_options(self, **options: Any) -> SynthPedConfig:
        """A copy with some fields replaced.

        Raises:
            ConfigError: For a field that does not exist, naming those that do.
        """
        known = [f.name for f in fields(self)]
        for name in options:
            if name not in known:
                raise ConfigError(f"synthped: there is no setting {name!r}; there are {', '.join(known)}")
        return replace(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON.

        Those of the video protocol are named where they differ from the defaults, so that images drawn before there
        was one are known to be the same.
        """
        unsaid = {
            f.name
            for f in fields(self)
            if f.metadata["help"].startswith("video: ") and getattr(self, f.name) == f.default
        }
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key not in unsaid
        }
