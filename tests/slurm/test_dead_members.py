"""Tasks of a grid that take turns, one of which dies before it can say so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.conftest import Vlmbench, states
from vlmbench.cluster.states import RunState

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_who_waits_for_a_task_without_its_environment_goes_on_and_names_it_and_its_log(
    tmp_path: Path, vlmbench: Vlmbench
) -> None:
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
    goes_on, dies = sorted(states(grid).values(), key=lambda one: str(one.state))
    assert (goes_on.state, dies.state) == (RunState.DONE, RunState.FAILED)
    name = dies.run.directory.name
    (dead,) = grid.glob(f".vlmbench/*/logs/{dies.job_id}_0_log.out")
    said = next(grid.glob(f".vlmbench/*/logs/{goes_on.job_id}_0_log.out")).read_text()
    (line,) = [line for line in said.splitlines() if "warning: goes on with 1 of 2 members" in line]
    assert f"; task {name} failed: it ended without a result (Slurm" in line
    assert "setup line failed with exit status 1: source" in line
    assert line.endswith(f"(its log: {dead.relative_to(grid)})")
