"""Writes a SynthPed benchmark to disk in the Market-1501 layout, with its ground truth beside it."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import uuid
import warnings
import zipfile
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from motarfuse.console import track
from motarfuse.data.synthped import layout
from motarfuse.data.synthped.config import PROTOCOLS, VERSION, SynthPedConfig
from motarfuse.data.synthped.dataset import BLOCK, SynthPed, SynthPedImages
from motarfuse.data.synthped.occluders import OCCLUDERS
from motarfuse.data.synthped.scene import Shots
from motarfuse.errors import ConfigError, OutputError

FORMATS = ("jpg", "png")
JPEG_QUALITY = 92
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def write_synthped(
    root: str | Path,
    config: SynthPedConfig | None = None,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    image_format: str = "jpg",
    workers: int = 2,
    overwrite: bool = False,
    ground_truth: bool = True,
    **options: Any,
) -> Path:
    """Draws a benchmark and writes ``root/<protocol>/{bounding_box_train,query,bounding_box_test}``.

    The same configuration gives the same pixels before encoding; the bytes of a JPEG also depend on the version of
    Pillow's encoder, those of PNG decode to the drawn pixels exactly. Everything is written into a temporary folder
    beside ``root`` first, so that an interrupted run leaves nothing that looks like a benchmark.

    Args:
        root: The folder to create.
        config: What to draw; the defaults when None.
        protocols: Which of ``holistic``, ``occluded``, ``partial`` to write. Training set and gallery are the same in
            each and are written once (hard links, or copies where the file system has none).
        image_format: ``jpg`` (quality 92, chroma at half resolution) or ``png``.
        workers: Processes that draw and encode (threads where processes cannot be forked).
        overwrite: Replace a folder that exists. Only a benchmark written by this function is ever replaced.
        ground_truth: Also write ``root/ground_truth/<set>.npz``.
        **options: Fields of `SynthPedConfig` to change, e.g. ``seed=1, train_ids=50``.

    Returns:
        The folder.

    Raises:
        ConfigError: For options that do not exist or contradict each other.
        OutputError: When the folder cannot be written; nothing is left behind then.
    """
    config = (config or SynthPedConfig()).with_options(**options)
    root = Path(root)
    _check(protocols, image_format, workers)
    _check_target(root, overwrite)
    synthped = SynthPed(config)
    temporary = root.parent / f".{root.name}.{uuid.uuid4().hex[:8]}.partial"
    with _output_errors(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            counts = _write_all(synthped, temporary, protocols, image_format, workers, ground_truth)
            manifest = {
                "dataset": "SynthPed",
                "version": VERSION,
                "config": config.to_dict(),
                "protocols": {name: SynthPed.protocol(name) for name in protocols},
                "images": counts,
                "image_format": image_format,
                "jpeg_quality": JPEG_QUALITY if image_format == "jpg" else None,
                "parts": list(layout.PARTS),
                "keypoints": list(layout.KEYPOINTS),
                "occluders": list(OCCLUDERS),
            }
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _replace(root, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def _check(protocols: Sequence[str], image_format: str, workers: int) -> None:
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or isinstance(protocols, str) or len(protocols) == 0:
        raise ConfigError(f"synthped: protocols must be some of {', '.join(PROTOCOLS)}, got {protocols!r}")
    if image_format not in FORMATS:
        raise ConfigError(f"synthped: image_format must be one of {', '.join(FORMATS)}, got {image_format!r}")
    if workers < 1:
        raise ConfigError(f"synthped: workers must be at least 1, got {workers}")


def _check_target(root: Path, overwrite: bool) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise OutputError(f"{root} is a file; name a folder that does not exist yet")
    with _output_errors(root):
        if not any(root.iterdir()):
            return
    if not overwrite:
        raise OutputError(f"{root} is not empty; name another folder, or overwrite it (overwrite=True, --overwrite)")
    if not _is_benchmark(root):
        raise OutputError(
            f"{root} holds something that is not a SynthPed benchmark and is not overwritten; name another folder"
        )


def _is_benchmark(root: Path) -> bool:
    try:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("dataset") == "SynthPed"


def _replace(root: Path, new: Path) -> None:
    """Puts the finished folder in place; what was there goes only after that."""
    if not root.exists():
        new.rename(root)
        return
    old = new.with_suffix(".old")
    root.rename(old)
    try:
        new.rename(root)
    except OSError:
        old.rename(root)
        raise
    shutil.rmtree(old)


@contextmanager
def _output_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = (
            "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a folder that can be written"
        )
        raise OutputError(f"cannot write SynthPed to {root}: {reason}; {advice}") from error


def file_names(synthped: SynthPed, shots: Shots, image_format: str = "jpg") -> list[str]:
    """Market-1501 names: person, camera, sequence, frame (unique within person and camera), box."""
    pids = synthped.pids(shots)
    frames: dict[tuple[int, int], int] = {}
    names = []
    for pid, camera, key in zip(pids.tolist(), shots.camera.tolist(), shots.key.tolist(), strict=True):
        count = frames.get((pid, camera), 0) + 1
        frames[pid, camera] = count
        # Frames of different sets never meet: ten thousand each, the set's number first.
        names.append(f"{pid:04d}_c{camera + 1}s1_{key // 10_000_000 * 10_000 + count:06d}_00.{image_format}")
    return names


def _write_all(
    synthped: SynthPed, root: Path, protocols: Sequence[str], image_format: str, workers: int, ground_truth: bool
) -> dict[str, int]:
    """Every set goes to the first protocol that uses it and is linked into the others."""
    homes: dict[str, Path] = {}
    links: list[tuple[str, Path]] = []
    for protocol in protocols:
        for folder, name in SynthPed.protocol(protocol).items():
            target = root / protocol / folder
            target.mkdir(parents=True)
            if name in homes:
                links.append((name, target))
            else:
                homes[name] = target
    names = {name: file_names(synthped, synthped.shots(name), image_format) for name in homes}
    blocks = [
        _Block(synthped.config, name, start, homes[name], tuple(names[name][start : start + BLOCK]))
        for name in homes
        for start in range(0, len(names[name]), BLOCK)
    ]
    if ground_truth:
        (root / "ground_truth").mkdir()
    drawn: dict[str, list[SynthPedImages]] = {name: [] for name in homes}
    # Closed before anybody removes the folder, so that no worker still writes into it.
    with closing(_drawn(blocks, workers)) as results:
        for block, images in track(results, "drawing SynthPed", total=len(blocks)):
            if not ground_truth:
                continue
            drawn[block.name].append(images)
            if sum(len(part) for part in drawn[block.name]) == len(names[block.name]):
                _write_truth(root / "ground_truth" / f"{block.name}.npz", names[block.name], drawn.pop(block.name))
    for name, target in links:
        for file_name in names[name]:
            _link(homes[name] / file_name, target / file_name)
    return {name: len(names[name]) for name in homes}


@dataclass(frozen=True)
class _Block:
    """Some images of a set, which one worker draws and writes."""

    config: SynthPedConfig
    name: str
    start: int
    folder: Path
    file_names: tuple[str, ...]

    def draw(self) -> SynthPedImages:
        """Writes the images and returns what is known of them."""
        synthped = SynthPed(self.config)
        rows = slice(self.start, self.start + len(self.file_names))
        images = synthped.draw(synthped.shots(self.name).take(rows))
        for pixels, file_name in zip(images.images, self.file_names, strict=True):
            save_image(pixels, self.folder / file_name)
        return images.without_pixels()


def _drawn(blocks: Sequence[_Block], workers: int) -> Generator[tuple[_Block, SynthPedImages], None, None]:
    """Draws the blocks and yields them in their order: by processes where they can be forked.

    As threads, workers would hand the interpreter's lock back and forth and be no faster than one.
    """
    workers = min(workers, len(blocks))
    if workers <= 1:
        yield from ((block, block.draw()) for block in blocks)
    elif sys.platform.startswith("linux"):
        yield from zip(blocks, _by_processes(blocks, workers), strict=True)
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield from zip(blocks, pool.map(_Block.draw, blocks), strict=True)


def _by_processes(blocks: Sequence[_Block], workers: int) -> Iterator[SynthPedImages]:
    """What the blocks' ``draw`` returns, in their order; worker k draws the blocks k, k + workers, ...

    Whatever ends this early, an interrupt or the reader, ends the workers at once.
    """
    context = multiprocessing.get_context("fork")
    processes = []
    open_ends = []
    try:
        for k in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_draw_all, args=(blocks[k::workers], sender), daemon=True)
            with warnings.catch_warnings():
                # Python 3.12 warns of a fork beside other threads. A worker calls numpy, Pillow and the rasteriser,
                # none of which waits for a thread of its parent.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            processes.append(process)
            sender.close()  # the worker's copy is the only one, so that its end is seen here
            open_ends.append(receiver)
        arrived: list[deque[SynthPedImages]] = [deque() for _ in processes]
        numbers = {receiver: k for k, receiver in enumerate(open_ends)}
        for i in range(len(blocks)):
            while not arrived[i % workers]:
                ready = connection.wait(open_ends)
                for receiver in [end for end in open_ends if end in ready]:
                    result = _received(receiver)
                    if result is None:
                        open_ends.remove(receiver)
                    else:
                        arrived[numbers[receiver]].append(result)
            yield arrived[i % workers].popleft()
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(receiver: connection.Connection) -> SynthPedImages | None:
    """A worker's next result, None behind its last."""
    try:
        result = receiver.recv()
    except EOFError:
        raise OutputError("a process that draws SynthPed was killed; is there enough memory?") from None
    if isinstance(result, Exception):
        raise result
    return result


def _draw_all(blocks: Sequence[_Block], sender: connection.Connection) -> None:
    """The work of one process: sends each block's result, then None, or the exception that stopped it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a worker goes with a parent that is killed
    if hasattr(libc, "mallopt"):
        # Every block needs the same 100 MB again; fetching and clearing their pages anew takes time.
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    gc.disable()  # a worker draws and ends, and what it draws has no cycles
    try:
        for block in blocks:
            sender.send(block.draw())
        sender.send(None)
    except BrokenPipeError:
        pass  # nobody reads any more
    except Exception as error:  # noqa: BLE001 (the parent raises it)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 (whatever the exception's own methods raise)
            error = RuntimeError(f"{type(error).__name__}: {error}")
        sender.send(error)


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Writes (h, w, 3) uint8 RGB; the suffix names the format."""
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(path, "PNG", compress_level=3)
    else:
        image.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=2)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)  # file systems without hard links


def _write_truth(path: Path, names: list[str], blocks: list[SynthPedImages]) -> None:
    """An ``.npz``; fast compression, because masks are small in any case."""
    truth = SynthPedImages.join(blocks)
    arrays = {
        "names": np.asarray(names),
        "pids": truth.pids.astype(np.int32),
        "camids": truth.camids.astype(np.int32),
        "parts": truth.parts,
        "amodal": truth.amodal,
        "keypoints": truth.keypoints,
        "visibility": truth.visibility,
        "occluded_share": truth.occluded_share,
        "in_frame": truth.in_frame,
        "occluder": truth.occluder.astype(np.int8),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
