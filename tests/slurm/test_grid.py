"""A grid on a real Slurm, with everything that goes wrong on one."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.slurm.conftest import Cluster, Vlmbench, go_on, hold, is_stopped, kill, pictures, states, until
from vlmbench.cluster.collect import collect
from vlmbench.cluster.grid import FOLDER, read_submissions
from vlmbench.cluster.launch import cancel
from vlmbench.cluster.states import OVER, RunState, overall
from vlmbench.cluster.status import status
from vlmbench.records.lock import holder_of
from vlmbench.records.provenance import read_provenance
from vlmbench.records.reading import iter_rows

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TASKS = 8
REPEATS = 100  # long enough that a task which was seen to run still runs when it is killed
IMAGES = 6


def ok_rows(folder: Path) -> list[dict[str, object]]:
    return [row for row in iter_rows(folder) if row["status"] == "ok"]


def rows_in(folder: Path) -> int:
    return sum(1 for _ in iter_rows(folder)) if (folder / "records.jsonl").exists() else 0


def test_a_grid_with_every_fault_is_complete_after_a_resume(
    tmp_path: Path, vlmbench: Vlmbench, slurm_cluster: Cluster
) -> None:
    """Raising, SIGKILLed, cancelled while pending and while running, preempted; controller and parent killed."""
    grid, roots = tmp_path / "grid", [pictures(tmp_path / f"p{i}", IMAGES) for i in range(TASKS)]
    raising = 0
    for picture in roots[raising].iterdir():
        picture.unlink()
    arguments = (
        f"dataset.root={','.join(map(str, roots))}", "dataset=image_folder", "dataset.num_samples=null",
        f"measurement.repeats={REPEATS}", "measurement.reference=false", "measurement.bare_every=0", f"output_dir={grid}",
    )  # fmt: skip
    parent = vlmbench.start(*arguments)

    def running(least_rows: int) -> list[str]:
        if not grid.exists() or not list(grid.glob(f"{FOLDER}/*/submission.json")):
            return []
        return [
            name
            for name, one in states(grid).items()
            if one.state == RunState.RUNNING and rows_in(grid / name) >= least_rows
        ]

    first = until(lambda: running(10), 120)[0]
    kill(holder_of(grid / first).pid)
    acknowledged = {first: rows_in(grid / first)}
    stray = grid / first / ".summary.json.killed.part"  # what a writer that was killed leaves
    stray.touch()

    pending = [name for name, one in states(grid).items() if one.state == RunState.QUEUED][-1]
    slurm_cluster.cancel(states(grid)[pending].job_id)

    second = until(lambda: [name for name in running(10) if name != first], 120)[0]
    slurm_cluster.cancel(states(grid)[second].job_id)
    acknowledged[second] = rows_in(grid / second)

    parent.kill()
    # The controller saves its state every few seconds and forgets what came later: a job that started in the last
    # moment would run twice, and its node be drained. So both running tasks are held, that none ends and none begins,
    # until a state is saved that knows them.
    held = until(lambda: hold(grid, [name for name in running(5) if name not in (first, second)], 2), 150, every=0.1)
    until(lambda: slurm_cluster.saved() > max(psutil.Process(pid).create_time() for pid in held), 60)
    slurm_cluster.daemon("kill", "slurmctld", "-9")
    assert RunState.UNKNOWN in {one.state for one in status(grid)}, "Slurm is silent: nobody is lost for that"
    slurm_cluster.daemon("restart", "slurmctld")
    go_on(held)

    until(lambda: [name for name in running(5) if name not in (first, second)], 120)
    urgent = slurm_cluster.sbatch("--partition=urgent", "--gres=gpu:2", "--output=/dev/null", "--wrap=sleep 2")
    until(lambda: all(one.state in OVER for one in status(grid, lost_after_s=20)), 300, every=2)

    seen = states(grid)
    assert seen[first].state == RunState.FAILED, seen[first]
    assert seen[second].state in (RunState.INTERRUPTED, RunState.CANCELLED), seen[second]
    # Slurm's controller forgets a cancelled array task when it is killed; nobody waits for it all the same.
    assert seen[pending].state in (RunState.CANCELLED, RunState.LOST), seen[pending]
    lost = next(name for name in seen if name.startswith(f"{raising}_"))
    assert seen[lost].state == RunState.FAILED
    assert "image" in seen[lost].reason
    assert seen[lost].outcome.exit_status == 2
    others = set(seen) - {first, second, pending, lost}
    assert {seen[name].state for name in others} == {RunState.DONE}
    assert overall(list(seen.values())) != 0
    early = collect(grid, tmp_path / "early", figures=False)
    assert set(pd.read_parquet(early.table_path)["run"]) >= others, "what is done can be used at once"
    restarted = [json.loads((grid / n / "outcome.json").read_text())["slurm"].get("restart_count") for n in others]
    assert any(restarted), f"job {urgent} preempted nobody"

    pictures(roots[raising], IMAGES)
    done = vlmbench.run(*arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "submitted 4 of 8 tasks" in done.stderr
    seen = states(grid)
    assert {one.state for one in seen.values()} == {RunState.DONE}
    collected = collect(grid, tmp_path / "all")
    frame = pd.read_parquet(collected.table_path)
    frame = frame[frame["status"] == "ok"]
    assert not frame.duplicated(["run", "point_id", "sample_id", "repeat", "mode"]).any(), "measured twice"
    per_run = Counter(frame["run"])
    assert set(per_run) == set(seen)
    assert len(set(per_run.values())) == 1, per_run
    for name, count in acknowledged.items():
        assert rows_in(grid / name) >= count, "an acknowledged row is lost"
        assert len({row["session"] for row in iter_rows(grid / name)}) >= 2
    assert collected.figures
    assert not stray.exists()
    for name in seen:
        settings = read_provenance(grid / name)["software"]["settings"]
        assert settings["CUDA_VISIBLE_DEVICES"] in ("0", "1"), "a GPU of its own"
    assert max(len({t.job_id.split("_")[0] for t in s.tasks}) for s in read_submissions(grid)) == 2, "arrays were split"


def test_a_task_past_its_time_limit_goes_on_in_another_turn(tmp_path: Path, vlmbench: Vlmbench) -> None:
    """The first turn is cut by Slurm's own word, 70 to 100 s into two minutes (it looks at limits every 30 s).

    The task is stopped from its fifth row until that word comes, so that it is cut there on a fast machine and on a
    slow one, and the turn after it has seconds of work to do.
    """
    grid = tmp_path / "grid"
    parent = vlmbench.start(
        "seed=5", "measurement.repeats=6", "measurement.bare_every=0", "hydra.launcher.time_min=2",
        "hydra.launcher.grace_s=20", "hydra.launcher.requeues=9", f"output_dir={grid}",
    )  # fmt: skip
    run = grid / "0_smoke"
    until(lambda: rows_in(run) and len(ok_rows(run)) >= 5, 240, every=0.05)
    task = holder_of(run).pid
    os.kill(task, signal.SIGSTOP)
    until(lambda: is_stopped(task), 30)
    held = (run / "records.jsonl").read_bytes()
    assert f"process {task} is held still by SIGSTOP" in (status(grid)[0].reason or "")
    until(lambda: not is_stopped(task), 120)  # with its word Slurm lets a stopped task go on
    assert parent.wait(timeout=240) == 0, vlmbench.said()
    assert "1 queued" in vlmbench.said().partition("1 running")[2], "it went back into the queue"
    (one,) = status(grid)
    assert one.state == RunState.DONE
    assert int(one.outcome.slurm["restart_count"]) >= 1
    assert (run / "records.jsonl").read_bytes().startswith(held), "an acknowledged row is lost"
    rows = ok_rows(run)
    keys = {(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in rows}
    assert len(keys) == len(rows), "measured twice"
    assert len({r["session"] for r in rows}) >= 2
    asked = Counter(r["sample_id"] for r in rows if r["point_id"] != "reference")
    assert set(asked.values()) == {6}


def test_leave_look_and_cancel(tmp_path: Path, vlmbench: Vlmbench) -> None:
    grid = tmp_path / "grid"
    arguments = (
        "seed=1,2,3", "measurement.repeats=500", "hydra.launcher.detach=true", f"output_dir={grid}",
        "hydra.launcher.time_min=3",  # less than the grace time and a minute: a cancelled task is not at its limit for that
    )  # fmt: skip
    ends = Counter(one.wait(240) for one in [vlmbench.start(*arguments) for _ in range(2)])
    told = vlmbench.said()
    assert ends[0], told
    assert "experiment=status" in told
    assert told.count("submitted 3 of 3 tasks") == 1, "of two submits at once one submits"
    assert "nothing was submitted: process" in told if ends[2] else "nothing to submit" in told
    assert len(jobs := {one.job_id for one in status(grid)}) == 3
    until(lambda: any(rows_in(p) for p in grid.glob("*_*")), 240)
    assert len(cancel(grid)) == 3
    until(lambda: all(one.state in OVER for one in status(grid, lost_after_s=20)), 90)
    assert {one.state for one in status(grid)} <= {RunState.CANCELLED, RunState.INTERRUPTED}
    queued = subprocess.run(
        ["squeue", "--me", "-h", "-r", "-o", "%i"], check=True, capture_output=True, text=True, timeout=60
    )
    assert not jobs & set(queued.stdout.split()), "a cancelled task went back into the queue"


def test_names_that_would_run_in_a_shell_do_not_and_no_script_holds_a_secret(
    tmp_path: Path, vlmbench: Vlmbench
) -> None:
    vlmbench.environment["PLANTED_TOKEN"] = "plain-value-of-a-variable"
    odd = tmp_path / "a b'c\"; touch bad $(touch bad) `touch bad` #&"
    done = vlmbench.run(
        "seed=1,2", f"output_dir='{str(odd).replace(chr(39), chr(92) + chr(39))}'",
        "hydra.launcher.comment='x; $(touch bad) `touch bad`'",
        "hydra.launcher.setup=['export ODD=\"$(touch bad);`touch bad`\"','export OTHER=$PLANTED_TOKEN']",
        "model.hub_id=${oc.env:PLANTED_TOKEN}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one.state for one in status(odd)} == {RunState.DONE}
    assert not list(Path.cwd().glob("bad*"))
    assert not list(tmp_path.rglob("bad"))
    for folder in [odd / FOLDER, *(odd / FOLDER).glob("*/")]:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in odd.rglob("*") if path.is_file()]
    assert any("#SBATCH" in path.read_text(errors="replace") for path in files), "the script as submitit writes it"
    assert not [path for path in files if b"plain-value-of" in path.read_bytes()]


def test_a_grid_that_cannot_begin_says_why(tmp_path: Path, vlmbench: Vlmbench, slurm_cluster: Cluster) -> None:
    subprocess.run(["scontrol", "update", "nodename=ALL", "state=drain", "reason=planted"], check=True, timeout=60)
    try:
        parent = vlmbench.start("seed=1", "measurement.repeats=2", f"output_dir={tmp_path / 'grid'}")
        until(lambda: "DRAINED" in vlmbench.said(), 120)
        assert "0_smoke: queued: " in vlmbench.said()
        assert slurm_cluster.drained().endswith("planted")
    finally:
        subprocess.run(["scontrol", "update", "nodename=ALL", "state=resume"], check=True, timeout=60)
    assert parent.wait(timeout=240) == 0, vlmbench.said()
    assert vlmbench.said().count("DRAINED") == 1, "a reason is told once"


def test_what_slurm_refuses_is_said(tmp_path: Path, vlmbench: Vlmbench) -> None:
    done = vlmbench.run("seed=1,2", "hydra.launcher.partition=nowhere", f"output_dir={tmp_path / 'grid'}")
    assert done.returncode == 2, done.stderr
    assert "invalid partition" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_grid_is_submitted_from_inside_an_allocation(
    tmp_path: Path, vlmbench: Vlmbench, slurm_cluster: Cluster
) -> None:
    vlmbench.environment |= {
        "SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "100", "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_JOB_ID": "1",
    }  # fmt: skip
    done = vlmbench.run("seed=1", "hydra.launcher.detach=true", f"output_dir={tmp_path / 'grid'}")
    assert done.returncode == 0, done.stderr
    found = subprocess.run(["squeue", "--me", "-h"], check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip()
