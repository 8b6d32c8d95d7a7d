"""Tasks of a grid that take turns, one of which dies before it can say so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.conftest import Vlmbench, states
from vlmbench.cluster.states import RunState

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_who_waits_for_a_task_without_its_environment_names_it_and_its_log(tmp_path: Path, vlmbench: Vlmbench) -> None:
    grid = tmp_path / "grid"
    environment = tmp_path / "environment"
    environment.write_text('test "$SLURM_ARRAY_TASK_ID" != 1\n')
    began = time.monotonic()
    done = vlmbench.run(
        "seed=1,2", f"measurement.turns.directory={tmp_path / 'turns'}", "measurement.turns.wait_s=3000",
        f"hydra.launcher.setup=['source {environment}']", f"output_dir={grid}",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 200
    waits, dies = states(grid).values()
    assert {waits.state, dies.state} == {RunState.FAILED}
    first, second = (waits.reason or "").splitlines()
    name = dies.run.directory.name
    assert first.startswith(f"only 1 of 2 members can take turns: task {name} failed: it ended without a result (Slurm")
    assert "setup line failed with exit status 1: source" in first
    (log,) = grid.glob(f".vlmbench/*/logs/{dies.job_id}_0_log.out")
    assert f"(its log: {log.relative_to(grid)}), then run the same command again." in second
