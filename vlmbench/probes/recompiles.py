"""Whether something was compiled within a run: a cause of an odd time that warm-up should have used up.

Dynamo counts the frames that it takes up; a run during which the count grows compiled one, for the first time or
again because a guard failed (another length, say). CUDA graphs that are recorded again are not in that count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.probes.protocol import RunFacts, Watch

RECOMPILED = "recompiled"
"""The flag of a run that compiled something."""


@dataclass(frozen=True, kw_only=True)
class RecompilesProbe:
    """Flags runs that compiled something (``recompiled``); left out where nothing is compiled."""

    name = "recompiles"
    own_run = False
    max_output_tokens = None

    def applies(self, model: VisionLanguageModel) -> bool:
        """Where the model may compile."""
        return model.compile

    @contextmanager
    def watch(self, model: VisionLanguageModel) -> Iterator[Watch]:  # noqa: ARG002 – the count is the process's
        """Count on entering and on leaving: outside the timed region."""
        watch = _RecompilesWatch()
        try:
            yield watch
        finally:
            watch.close()


class _RecompilesWatch(Watch):
    def __init__(self) -> None:
        self._compiled = 0
        self._before = frames_taken_up()

    def close(self) -> None:
        self._compiled = frames_taken_up() - self._before

    def values(self, run: RunFacts) -> dict[str, Any]:  # noqa: ARG002 – the count does not depend on what came out
        return {"compiled_frames": self._compiled, "flags": [RECOMPILED] if self._compiled else []}


def frames_taken_up() -> int:
    """Frames that Dynamo has begun to compile in this process, those included that it gave up."""
    from torch._dynamo.utils import counters

    return int(counters["frames"]["total"])
