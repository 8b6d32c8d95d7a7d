"""Capturing work once and running it again: CUDA graphs, or the work itself where there are none.

A CUDA graph replays kernels on the addresses that they had when they were captured and runs no Python. So what is
captured takes its inputs from tensors that stay, must not wait for the device, and must not depend on values that the
host has read. :meth:`Recorder.obstacle` finds out beforehand.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vlmbench.engines import constants

T = TypeVar("T")
Play = Callable[[], Any]

_NOT_THE_MODELS = (str(Path(torch.__file__).parent) + os.sep, __file__, constants.__file__)
_WARM_UP_RUNS = 2  # the first run chooses kernels and makes workspaces, none of which may happen in a capture


class Recorder(Protocol):
    """Keeps work so that it can be run again."""

    @property
    def captures(self) -> bool:
        """Whether replays run without Python."""

    @property
    def recording(self) -> bool:
        """Whether work is being captured right now."""

    def obstacle(self, work: Callable[[], Any]) -> str | None:
        """Run the work, which warms it up; why it cannot be captured, None where it can."""

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """Capture the work, which was warmed up; calling the answer runs it again and gives the same tensors."""

    def nested(self, work: Callable[[], T], again: Callable[[Play], Any]) -> T:
        """Within :meth:`record`: capture a part by itself, so that marks can stand before and after it.

        Args:
            again: called at the part's place in every replay, with what replays the part.
        """


class Uncaptured:
    """The same loop without capturing: work runs again as Python. For CPUs, and to find out what capturing gains."""

    captures = False
    recording = False

    def obstacle(self, work: Callable[[], Any]) -> str | None:
        """None: everything can be run again."""
        work()
        return None

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """The work itself."""
        return work

    def nested(self, work: Callable[[], T], again: Callable[[Play], Any]) -> T:  # noqa: ARG002
        """The part itself: nothing is recorded."""
        return work()


class CudaGraphs:
    """CUDA graphs on one device, in one memory pool: they run one after the other, so they share their scratch memory.

    Args:
        device: a CUDA device.
    """

    captures = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream
        self._stream = stream(device)
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._tapes: list[list[Play]] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        # The pool ends with its last graph, also where that is one that failed: so one stays.
        self._first = self.record(lambda: torch.zeros((), device=device))

    @property
    def recording(self) -> bool:
        """Whether a capture is under way."""
        return bool(self._tapes)

    def obstacle(self, work: Callable[[], Any]) -> str | None:
        """Run the work on a stream of its own; the operation that makes the host wait, None where there is none."""
        with self._aside():
            for _ in range(_WARM_UP_RUNS):
                work()
            before = torch.cuda.get_sync_debug_mode()
            try:
                with warnings.catch_warnings():  # a prototype, says torch once; as an error that would leave it on
                    warnings.simplefilter("ignore")
                    torch.cuda.set_sync_debug_mode("error")
                work()
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                return _where(error)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return None

    def record(self, work: Callable[[], T]) -> Callable[[], T]:
        """Capture the work in one graph, or in several where parts of it are marked (:meth:`nested`)."""
        tape: list[Play] = []
        with self._aside(), as_uncaptured():
            result = self._taped(tape, work)

        def play() -> T:
            for piece in tape:
                piece()
            return result

        return play

    def nested(self, work: Callable[[], T], again: Callable[[Play], Any]) -> T:
        """End the graph, capture the part in graphs of its own, and begin another graph."""
        tape: list[Play] = []
        with unseen():
            self._end()
        self._tapes[-1].append(lambda: again(lambda: [piece() for piece in tape]))
        result = self._taped(tape, work)
        with unseen():
            self._begin()
        return result

    def _taped(self, tape: list[Play], work: Callable[[], T]) -> T:
        self._tapes.append(tape)
        try:
            with unseen():
                self._begin()
            try:
                return work()
            finally:
                with unseen():
                    self._end()
        finally:
            self._tapes.pop()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        if graph is None:  # a part failed, and its graph is closed already
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")  # nothing between two parts
            graph.capture_end()
        self._tapes[-1].append(graph.replay)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On the stream of captures, after and before everything on the stream that is current."""
        current = torch.cuda.current_stream(self._device)
        torch.cuda.synchronize(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)


@contextmanager
def unseen() -> Iterator[None]:
    """Keep what follows from whoever follows a work's operators: a capture that begins or ends runs some of its own."""
    with _disable_current_modes():
        yield


@contextmanager
def as_uncaptured() -> Iterator[None]:
    """Let code that asks whether it is being captured go the way that it goes otherwise.

    transformers 5.17 makes a mask for every causal prefill that is captured; kernels for causal attention take none.
    That way was looked at before (:meth:`Recorder.obstacle`): it waits for nothing.
    """
    asked = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: False
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = asked


def recorder_for(device: torch.device) -> Recorder:
    """CUDA graphs where the device has them."""
    return CudaGraphs(device) if device.type == "cuda" else Uncaptured()


def _where(error: BaseException) -> str:
    """The line of the model's code that waits for the device."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_NOT_THE_MODELS):
            place = f"{code.co_qualname} (line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{place or 'it'} makes the host wait for the device"
