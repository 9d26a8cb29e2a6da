"""Processes that draw blocks of images, each a part of a benchmark."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from motarfuse.errors import OutputError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Block(Protocol):
    """Some images that one worker draws and writes."""

    def draw(self) -> Any:
        """Writes the images and returns what is known of them, which must not be None."""


B = TypeVar("B", bound=Block)


def _call(block: Block) -> Any:
    return block.draw()


def draw_blocks(blocks: Sequence[B], workers: int) -> Generator[tuple[B, Any], None, None]:
    """Draws the blocks and yields them in their order, with what their ``draw`` returns.

    Workers are processes where they can be forked: as threads, they would hand the interpreter's lock back and forth
    and be no faster than one.
    """
    workers = min(workers, len(blocks))
    if workers <= 1:
        yield from ((block, block.draw()) for block in blocks)
    elif sys.platform.startswith("linux"):
        yield from zip(blocks, _by_processes(blocks, workers), strict=True)
    else:
        with ThreadPoolExecutor(workers) as pool:
            yield from zip(blocks, pool.map(_call, blocks), strict=True)


def _by_processes(blocks: Sequence[Block], workers: int) -> Iterator[Any]:
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
        arrived: list[deque[Any]] = [deque() for _ in processes]
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


def _received(receiver: connection.Connection) -> Any:
    """A worker's next result, None behind its last."""
    try:
        result = receiver.recv()
    except EOFError:
        raise OutputError("a process that draws SynthPed was killed; is there enough memory?") from None
    if isinstance(result, Exception):
        raise result
    return result


def _draw_all(blocks: Sequence[Block], sender: connection.Connection) -> None:
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
