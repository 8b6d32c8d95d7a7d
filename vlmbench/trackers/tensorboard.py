"""TensorBoard: an event file beside the run, or in a folder that many runs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbench.trackers.library import library
from vlmbench.trackers.protocol import Tracked
from vlmbench.trackers.result import Result

_PACKAGE = "'vlmbench-latency[trackers]'"


@dataclass(frozen=True, kw_only=True)
class TensorboardTracker:
    """Writes a run as TensorBoard events: numbers as scalars, provenance as text, figures as images.

    Args:
        folder: that many runs share, each in a folder of its own name; None: ``tensorboard/`` of the run directory.
    """

    folder: str | None = None
    name = "tensorboard"

    def check(self) -> None:
        """Refuse where TensorBoard is not installed.

        Raises:
            ConfigError: with the package to install.
        """
        library("tensorboard", tracker=self.name, package=_PACKAGE)

    def track(self, result: Result, run_id: str | None) -> Tracked:
        """Write the events of this session, at the step of its number."""
        place = Path(self.folder) / result.name.replace(" ", "_") if self.folder else result.directory / "tensorboard"
        writer = library("torch.utils.tensorboard", tracker=self.name, package=_PACKAGE).SummaryWriter(str(place))
        try:
            for name, value in result.numbers.items():
                writer.add_scalar(name, value, result.sessions)
            writer.add_text("provenance", _table({**result.tags, **result.facts}), result.sessions)
            for path in result.pictures:
                writer.add_image(path.stem, _pixels(path), result.sessions, dataformats="HWC")
        finally:
            writer.close()
        return Tracked(run_id=run_id or place.name, where=str(place))


def _table(facts: dict[str, str]) -> str:
    """Facts as a Markdown table."""
    cells = (f"| {key} | {' '.join(value.split()).replace('|', '/')} |" for key, value in facts.items())
    return "\n".join(["| what | value |", "| --- | --- |", *cells])


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
