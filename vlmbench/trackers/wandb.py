"""Weights & Biases: offline unless it is asked to upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmbench.errors import ConfigError
from vlmbench.trackers.library import library
from vlmbench.trackers.protocol import Tracked
from vlmbench.trackers.result import Result

_MODES = ("offline", "online")


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Stores a run in Weights & Biases: numbers as its summary, provenance as its configuration, figures and the page.

    Args:
        project: of W&B.
        entity: user or team; None: W&B's default.
        mode: ``offline`` writes ``wandb/`` of the run directory (``wandb sync`` uploads it later); ``online`` uploads,
            with the key that ``wandb login`` or ``WANDB_API_KEY`` gave.
    """

    project: str = "vlmbench"
    entity: str | None = None
    mode: str = "offline"
    name = "wandb"

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"'mode' must be one of {', '.join(_MODES)} (got {self.mode!r})")

    def check(self) -> None:
        """Refuse where wandb is not installed, or no key is there to upload with.

        Raises:
            ConfigError: with what to do.
        """
        wandb = self._library()
        if self.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError(
                "tracker.mode=online needs a key\nrun 'wandb login', set WANDB_API_KEY, or use tracker.mode=offline"
            )

    def track(self, result: Result, run_id: str | None) -> Tracked:
        """Make a run of W&B, or continue the one of this directory."""
        wandb = self._library()
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True,
            disable_code=True, host="vlmbench", x_save_requirements=False,
        )  # fmt: skip  # nothing but what the result holds: no host name, no path, no output of the terminal
        run = wandb.init(
            project=self.project, entity=self.entity, mode=self.mode, dir=str(result.directory), name=result.name,
            id=run_id, resume="allow" if run_id else None, config={**result.facts, **result.tags}, settings=quiet,
        )  # fmt: skip
        try:
            run.summary.update(dict(result.numbers))
            run.log({path.stem: wandb.Image(str(path)) for path in result.pictures})
            artifact = wandb.Artifact(f"vlmbench-{run.id}", type="result")
            for path, folder in result.files.items():
                artifact.add_file(str(path), name=f"{folder}/{path.name}" if folder else path.name)
            run.log_artifact(artifact)
        finally:
            run.finish()
        where = run.url if self.mode == "online" else str(result.directory / "wandb")
        return Tracked(run_id=str(run.id), where=str(where))

    def _library(self) -> Any:
        return library("wandb", tracker=self.name, package="wandb")
