"""NVTX ranges around the stages of a run, for Nsight Systems: what the timeline marks, as the profiler's own names.

    nsys profile -t cuda,nvtx python -m vlmbench … probe.timeline.nvtx=true

A range is opened and closed where a mark is set, on the host; the profiler lays it over the kernels that were launched
inside. Within the decode each token has a range of its own. The kernel probe's traces (``traces/``) have the stages as
tracks of their own: torch.profiler shows no NVTX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmbench.errors import ConfigError
from vlmbench.probes.stages import Kind


class Ranges:
    """Follows the marks of a run and keeps one range open for the stage, one for the token in it.

    Unlike :func:`vlmbench.probes.stages.segments`, which sees all marks at once, it names a stage when it begins: what
    lies between two pieces of vision work is prefill here, and the last token's range holds what follows it.

    Args:
        push: opens a range of a name.
        pop: closes the range that was opened last.
        vision: whether the model has a vision tower or a projector, which ends the setup.
    """

    def __init__(self, push: Callable[[str], Any], pop: Callable[[], Any], *, vision: bool) -> None:
        self._push, self._pop, self._vision = push, pop, vision
        self._open: list[str] = []
        self._tokens = 0

    def mark(self, kind: Kind) -> None:
        """Open and close what begins and ends at a mark."""
        if kind is Kind.START:
            self._tokens = 0
            self._enter("setup")
        elif kind is Kind.END:
            self._close()
        elif kind is Kind.TOKEN:
            self._token()
        elif not self._tokens:
            self._before_first(kind)

    def _before_first(self, kind: Kind) -> None:
        if kind is Kind.ENTER_VISION:
            self._enter("vision_encoder")
        elif kind is Kind.ENTER_PROJECTOR:
            self._enter("projector")
        elif kind in (Kind.EXIT_VISION, Kind.EXIT_PROJECTOR) or (
            self._open == ["setup"]
            and (kind is Kind.ENTER_LANGUAGE or (kind is Kind.ENTER_FORWARD and not self._vision))
        ):
            self._enter("LLM_prefill")

    def _token(self) -> None:
        self._tokens += 1
        if self._tokens == 1:
            self._enter("LLM_decode")
        else:
            self._pop()
            self._open.pop()
        self._push(f"token {self._tokens + 1}")
        self._open.append("token")

    def _enter(self, stage: str) -> None:
        self._close()
        self._push(stage)
        self._open.append(stage)

    def _close(self) -> None:
        while self._open:
            self._open.pop()
            self._pop()


def check_nvtx(device: str) -> None:
    """Refuse ranges where no profiler of a GPU can see them.

    Raises:
        ConfigError: the device is none of CUDA.
    """
    if device != "cuda":
        raise ConfigError(
            f"'probe.timeline.nvtx' must be false on device '{device}': NVTX ranges are CUDA's.\n"
            "Leave it out here; exports/request_p50.trace.json shows the stages of a request on any device."
        )
