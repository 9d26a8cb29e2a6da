"""Which images make a training batch: P identities with K images each, as a pure function of seed and step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from motarfuse import console
from motarfuse.data.records import UNKNOWN_CAMERA
from motarfuse.errors import DataError

# Keys of the random streams: two draws with different purposes never share one.
_ORDER_OF_IDENTITIES = 0
_ORDER_OF_ANCHORS = 1
_POSITIVES = 2


class PKSampler:
    """Batches of P identities with K images each, positives from other cameras first.

    A pass over the identities takes ``steps_per_pass = ceil(identities / (P world_size))`` steps and visits every
    identity once before any is repeated; the last step of a pass is filled up with identities from its start. Within a
    step the identities are distinct, over all processes. Each visit starts from another image of the identity (all of
    them in turn), followed by images from other cameras, one camera after the other, then by images from the same
    camera; only an identity with fewer than K images repeats some, each once before any twice.

    ``batch(step)`` depends on the arguments and the step alone: training that resumes at a step goes on exactly as if
    it had never stopped, and processes need not talk to each other.

    Args:
        labels: Identity of each image, any integers.
        camids: Camera of each image, -1 for unknown, which counts as different from every other.
        identities: P, identities in this process's batch.
        instances: K, images of each.
        seed: Seed of all draws, not negative.
        cross_camera: False draws the positives regardless of their cameras.
        rank: This process, 0..world_size - 1.
        world_size: Number of processes, each of which takes different identities.

    Raises:
        DataError: if there are fewer than two identities, or fewer than ``identities * world_size``.
        ValueError: if an argument is out of range or ``labels`` and ``camids`` differ in length.

    Source: P x K batches, Hermans et al. 2017.
    """

    def __init__(
        self,
        labels: Sequence[int],
        camids: Sequence[int],
        *,
        identities: int,
        instances: int,
        seed: int,
        cross_camera: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(labels) != len(camids):
            raise ValueError(f"labels and camids differ in length: {len(labels)} and {len(camids)}")
        for name, value, least in (
            ("identities", identities, 1),
            ("instances", instances, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.identities = identities
        self.instances = instances
        self.seed = seed
        self.cross_camera = cross_camera
        self.rank = rank
        self.world_size = world_size
        self._camids = np.asarray(camids, dtype=np.int64)
        labels_array = np.asarray(labels, dtype=np.int64)
        order = np.argsort(labels_array, kind="stable")
        distinct, starts = np.unique(labels_array[order], return_index=True)
        self._images = np.split(order, starts[1:]) if len(order) else []
        self._check(distinct)

    def _check(self, distinct: np.ndarray) -> None:
        wanted = self.identities * self.world_size
        if len(distinct) < 2:
            raise DataError(
                f"training needs images of at least two identities, got {len(distinct)} "
                f"({sum(map(len, self._images))} images): a classifier and a triplet compare people"
            )
        if len(distinct) < wanted:
            processes = f" in {self.world_size} processes" if self.world_size > 1 else ""
            raise DataError(
                f"{wanted} different identities a step were asked for{processes}, the training images show "
                f"{len(distinct)}; set the number of identities a batch to at most {len(distinct) // self.world_size}"
            )
        if self.num_short_identities and self.rank == 0:
            console.warn(
                f"{self.num_short_identities} of {len(distinct)} identities have fewer than {self.instances} images: "
                "their images are repeated within a batch"
            )

    @property
    def num_identities(self) -> int:
        """Number of identities that are drawn from."""
        return len(self._images)

    @property
    def num_short_identities(self) -> int:
        """Number of identities with fewer than K images."""
        return sum(len(images) < self.instances for images in self._images)

    @property
    def batch_size(self) -> int:
        """Images in a batch: P K."""
        return self.identities * self.instances

    @property
    def steps_per_pass(self) -> int:
        """Steps in which every identity is visited."""
        return -(-self.num_identities // (self.identities * self.world_size))

    def batch(self, step: int) -> list[int]:
        """The images of one step.

        Args:
            step: From 0.

        Returns:
            P K indices into ``labels``, the K of an identity next to one another.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        turn, position = divmod(step, self.steps_per_pass)
        order = self._stream(_ORDER_OF_IDENTITIES, turn).permutation(self.num_identities)
        first = (position * self.world_size + self.rank) * self.identities
        places = np.arange(first, first + self.identities) % self.num_identities
        indices: list[int] = []
        for identity in order[places]:
            indices.extend(self._draw(int(identity), turn, step))
        return indices

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """The batches of the steps ``start``, ``start + 1``, ... without end."""
        step = start
        while True:
            yield self.batch(step)
            step += 1

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches()

    def _draw(self, identity: int, turn: int, step: int) -> list[int]:
        images = self._images[identity]
        cycle, place = divmod(turn, len(images))
        anchor = int(images[self._stream(_ORDER_OF_ANCHORS, identity, cycle).permutation(len(images))[place]])
        random = self._stream(_POSITIVES, identity, step)
        others = random.permutation(images[images != anchor])
        if self.cross_camera and len(others):
            others = self._other_cameras_first(anchor, others, random)
        chosen = [anchor, *(int(index) for index in others[: self.instances - 1])]
        while len(chosen) < self.instances:
            again = random.permutation(images)[: self.instances - len(chosen)]
            chosen.extend(int(index) for index in again)
        return chosen

    def _other_cameras_first(self, anchor: int, others: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One image of each other camera in turn, the anchor's own camera last; ``others`` come shuffled."""
        cameras = self._camids[others]
        same = (cameras == self._camids[anchor]) & (cameras != UNKNOWN_CAMERA)
        distinct, which = np.unique(cameras, return_inverse=True)
        # How many images of the same camera come before each one: sorting by it deals the cameras out in turn.
        rounds = np.zeros(len(others), dtype=np.int64)
        for camera in range(len(distinct)):
            members = which == camera
            rounds[members] = np.arange(members.sum())
        return others[np.lexsort((random.permutation(len(distinct))[which], rounds, same))]

    def _stream(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))
