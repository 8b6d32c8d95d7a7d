"""Shared fixtures: composing configurations, and running the real command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from vlmbench.cli import config
from vlmbench.machine.installation import conf_dir


@pytest.fixture
def compose() -> Iterator[Callable[..., DictConfig]]:
    """Compose the shipped configuration with overrides."""
    config.register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield lambda *overrides: hydra.compose("config", overrides=list(overrides))


@pytest.fixture
def vlmbench(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m vlmbench`` in an empty working directory."""

    def run(*arguments: str, timeout_s: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "VLMBENCH_", "MOLMO_", "SLURM_"))}
        kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
        return subprocess.run(
            [sys.executable, "-m", "vlmbench", *arguments],
            cwd=tmp_path,
            env=kept,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
