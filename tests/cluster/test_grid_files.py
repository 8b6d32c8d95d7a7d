"""What was submitted, and what became of it, is told from files."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from vlmbench.cli import grids
from vlmbench.cli.grids import after_multirun
from vlmbench.cluster import slurm
from vlmbench.cluster.grid import FOLDER, Submission, Task, find_runs, new_submission, read_submissions
from vlmbench.cluster.last_words import ending, last_words, log_of
from vlmbench.cluster.launch import conclude
from vlmbench.cluster.remaining import submitting, to_do
from vlmbench.cluster.states import OVER, RunState, overall, table, time_left
from vlmbench.cluster.status import status
from vlmbench.cluster.turn_members import started_with
from vlmbench.errors import DirectoryConflictError, InputError, MeasurementError
from vlmbench.machine.turns import StartedTogether, Turns, member_name
from vlmbench.records.lock import Holder, RunLock
from vlmbench.records.outcome import OUTCOME_NAME, OutcomeFile, State, read_outcome
from vlmbench.records.provenance import begin_session, collect

CONFIG = {"seed": 1}


def submitted(
    sweep_dir: Path, count: int = 3, *, cluster: str = "slurm", age_s: float = 0, ids: bool = True
) -> Submission:
    tasks = {i: (Task(index=i, directory=f"{i}_run", overrides=(f"seed={i}",)), CONFIG) for i in range(count)}
    found = new_submission(sweep_dir, cluster=cluster, job_name="test", tasks=tasks, settings={})
    found = replace(found, submitted_unix_s=time.time() - age_s)
    if ids:
        found = found.with_ids({i: f"7_{i}" for i in range(count)})
    found.write()
    return found


def ended(folder: Path, state: State, exit_status: int, job_id: str | None = None, **more: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = OutcomeFile(folder)
    file.begin()
    file.end(state, exit_status=exit_status, **more)
    if job_id:
        content = {**json.loads((folder / OUTCOME_NAME).read_text()), "job_id": job_id}
        (folder / OUTCOME_NAME).write_text(json.dumps(content))


def says(
    monkeypatch: pytest.MonkeyPatch, queue: dict[str, str] | None, accounts: dict[str, str] | None = None,
    exit_code: str = "0:9",
) -> None:  # fmt: skip
    """A scheduler that gives these answers (the real one is asked in tests/slurm)."""

    def answer() -> dict[str, slurm.JobState]:
        if queue is None:
            raise slurm.SlurmSilentError("squeue: no answer")
        return {job: slurm.JobState(state=state, left_s=100.0) for job, state in queue.items()}

    monkeypatch.setattr(slurm, "queue", answer)
    monkeypatch.setattr(slurm, "queue_by_name", lambda name: {})
    ended = {job: slurm.JobState(state=state, exit_code=exit_code) for job, state in (accounts or {}).items()}
    monkeypatch.setattr(slurm, "accounting", lambda ids: {job: ended[job] for job in ids if job in ended})


def states(folder: Path, **more: float) -> list[str]:
    return [str(one.state) for one in status(folder, **more)]


def test_a_submission_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = submitted(tmp_path / "sweep")
    assert read_submissions(tmp_path / "sweep") == [written]
    for folder in (tmp_path / "sweep" / FOLDER, written.folder, written.folder / "tasks", written.folder / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert json.loads(written.task_file(written.tasks[1]).read_text()) == CONFIG
    (tmp_path / "sweep").rename(tmp_path / "moved")
    assert [run.directory for run in find_runs(tmp_path)] == [tmp_path / "moved" / f"{i}_run" for i in range(3)]


def test_queue_outcome_and_accounts_make_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(tmp_path, 9, age_s=1000)
    ended(tmp_path / "2_run", State.DONE, 0, "7_2")
    ended(tmp_path / "3_run", State.FAILED, 2, "7_3", reason="no such folder")
    says(
        monkeypatch, {"7_0": "PENDING", "7_1": "RUNNING", "7_5": "CANCELLED", "7_8": "REQUEUED"},
        {"7_4": "CANCELLED", "7_6": "OUT_OF_MEMORY"},
    )  # fmt: skip
    assert states(tmp_path) == [
        "queued", "running", "done", "failed", "cancelled", "cancelled", "failed", "lost", "queued",
    ]  # fmt: skip
    found = status(tmp_path)
    assert found[3].reason == "no such folder"
    assert "memory" in found[6].reason
    assert overall(found) == 1
    assert [row["run"] for row in table(found, tmp_path)] == [f"{i}_run" for i in range(9)]


def test_nobody_is_lost_while_slurm_is_silent_or_the_job_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(tmp_path, 2, age_s=1000)
    says(monkeypatch, None)
    assert states(tmp_path) == ["unknown", "unknown"]
    says(monkeypatch, {})
    assert states(tmp_path, lost_after_s=2000) == ["unknown", "unknown"]
    assert states(tmp_path) == ["lost", "lost"]


def test_an_earlier_jobs_outcome_is_not_the_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(tmp_path, 1, age_s=1000)
    ended(tmp_path / "0_run", State.INTERRUPTED, 130, "5_0")
    says(monkeypatch, {"7_0": "PENDING"})
    assert states(tmp_path) == ["queued"]
    says(monkeypatch, {})
    assert states(tmp_path) == ["lost"]
    ended(tmp_path / "0_run", State.INTERRUPTED, 130, "7_0")
    assert states(tmp_path) == ["interrupted"]
    assert overall(status(tmp_path)) == 130


def test_ids_that_a_dead_parent_never_stored_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(tmp_path, 2, age_s=1000, ids=False)
    says(monkeypatch, {"9_0": "RUNNING", "9_1": "PENDING"})
    monkeypatch.setattr(slurm, "queue_by_name", lambda name: {0: "9_0", 1: "9_1"} if name.startswith("test.") else {})
    assert states(tmp_path) == ["running", "queued"]


class TestWhatIsSubmittedAgain:
    @pytest.fixture
    def composed(self) -> dict[int, tuple[Task, dict[str, int]]]:
        return {i: (Task(index=i, directory=f"{i}_run", overrides=()), {"seed": i}) for i in range(4)}

    def begun(self, folder: Path, seed: int) -> None:
        begin_session(folder, collect({"seed": seed}, model_facts={}, device="cpu", seed=seed))

    def test_what_is_neither_done_nor_on_its_way(
        self, tmp_path: Path, composed: dict[int, tuple[Task, dict[str, int]]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submitted(tmp_path, 4, age_s=1000)
        self.begun(tmp_path / "0_run", 0)
        ended(tmp_path / "0_run", State.DONE, 0, "7_0")
        self.begun(tmp_path / "1_run", 1)
        ended(tmp_path / "1_run", State.FAILED, 1, "7_1")
        says(monkeypatch, {"7_2": "RUNNING"})
        assert list(to_do(tmp_path, composed)) == [1, 3]
        says(monkeypatch, None)
        with pytest.raises(InputError, match="Slurm does not answer"):
            to_do(tmp_path, composed)

    def test_another_configuration_stops_it_before_anything_is_submitted(
        self, tmp_path: Path, composed: dict[int, tuple[Task, dict[str, int]]]
    ) -> None:
        self.begun(tmp_path / "1_run", 5)
        with pytest.raises(DirectoryConflictError, match=r"seed: 5 → 1.*\n.*Nothing was submitted"):
            to_do(tmp_path, composed)


HOLD = (
    "import sys, time; from pathlib import Path; from vlmbench.records.lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_a_run_of_this_host_lives_as_long_as_its_lock(tmp_path: Path) -> None:
    submitted(tmp_path, 2, cluster="local", age_s=1000, ids=False)
    ended(tmp_path / "0_run", State.DONE, 0)
    file = OutcomeFile(tmp_path / "1_run")
    (tmp_path / "1_run").mkdir()
    file.begin()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "1_run"], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    assert states(tmp_path) == ["done", "running"]
    holder.kill()
    holder.communicate()
    assert states(tmp_path) == ["done", "lost"]


def test_runs_without_a_launcher_count_too(tmp_path: Path) -> None:
    ended(tmp_path / "a" / "x", State.DONE, 0)
    ended(tmp_path / "a" / "y", State.FAILED, 1, error=RuntimeError("out of luck"))
    found = status(tmp_path)
    assert [(one.run.directory.name, str(one.state)) for one in found] == [("x", "done"), ("y", "failed")]
    assert found[1].reason == "out of luck"


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no runs"):
        status(tmp_path)
    with pytest.raises(InputError, match="is no directory"):
        status(tmp_path / "nothing")


def test_the_last_lines_name_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path / "0_run", State.DONE, 0)
    ended(tmp_path / "1_run", State.FAILED, 1, reason="out of luck")
    assert conclude(status(tmp_path), tmp_path) == 1
    said = capsys.readouterr().err
    assert "1_run: failed: out of luck" in said
    assert "1 of 2 tasks done" in said


def test_time_left_is_estimated_from_points(tmp_path: Path) -> None:
    ended(tmp_path, State.DONE, 0)
    outcome = replace(read_outcome(tmp_path), points_done=2, points_total=6, started_unix_s=100.0, updated_unix_s=150.0)
    assert time_left(outcome, None) == 100.0
    assert time_left(outcome, 30.0) == 30.0
    assert time_left(None, None) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784.0), ("05:06", 306.0), ("1:00:00", 3600.0), ("UNLIMITED", None), ("", None)],
)
def test_slurms_durations(text: str, seconds: float | None) -> None:
    assert slurm._seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "ids"), [("12", ["12"]), ("12_3", ["12_3"]), ("12_[0-2,5%4]", ["12_0", "12_1", "12_2", "12_5"])]
)
def test_slurms_arrays(text: str, ids: list[str]) -> None:
    assert slurm._expand(text) == ids


def test_a_slurm_that_is_not_there_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(slurm.SlurmSilentError):
        slurm.queue()
    assert slurm.accounting(["1_0"]) == {}
    assert slurm.max_array_size() == 1000
    assert RunState.LOST in OVER


def test_a_task_refused_after_an_interruption_says_why(tmp_path: Path) -> None:
    """Its directory's outcome is the earlier attempt's, which it may not replace."""
    ended(tmp_path / "0_run", State.INTERRUPTED, 130)
    time.sleep(0.01)
    found = submitted(tmp_path, 1, cluster="local", ids=False)
    assert states(tmp_path) == ["interrupted"]
    log = found.folder / "logs" / "0.log"
    said = "'x' was measured otherwise: device.threads: 1, then 2.\nChoose another directory."
    log.write_text(f"vlmbench: loading\nvlmbench: {said}\n{ending(2, said)}\n")
    (one,) = status(tmp_path)
    assert one.state == RunState.FAILED
    assert one.reason == said
    assert one.exit_status == 1
    ended(tmp_path / "0_run", State.DONE, 0)
    assert states(tmp_path) == ["done"]


def test_slurms_word_on_a_failed_job_is_followed_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = submitted(tmp_path, 1, age_s=1000)
    ended(tmp_path / "0_run", State.INTERRUPTED, 130, "5_0")
    says(monkeypatch, {}, {"7_0": "FAILED"})
    (found.folder / "logs" / "7_0_0_log.out").write_text(
        f"vlmbench: refused\n{ending(2, 'refused')}\nsrun: error: n1: task 0: Exited with exit code 2\n"
    )
    (one,) = status(tmp_path)
    assert one.state == RunState.FAILED
    assert one.reason is not None
    assert one.reason.endswith(": refused")


LOADING = "vlmbench: loading\n"
OVER_130 = f"vlmbench: interrupted\n{ending(130, 'interrupted')}\n"
NO_PYTHON = "slurmstepd: error: execve(): /opt/python: No such file or directory\n"
EXITED = "srun: error: n1: task 0: Exited with exit code 2\n"
OOM_OF_A_GROUP = (
    "srun: error: n1: task 0: Out Of Memory\n"
    "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=2.0. Some of your processes may have been killed.\n"
)
OOM_OF_ACCOUNTING = (
    "slurmstepd-n1: error: StepId=1.0 exceeded memory limit (328 > 104), being killed\n"
    "srun: Job step aborted: Waiting up to 7 seconds for job step to finish.\nsrun: error: n1: task 0: Killed\n"
)
SETUP = (
    "/spool/job1/slurm_script: line 9: /no/setup: No such file or directory\n"
    "slurm_script: setup line failed with exit status 1: source /no/setup\n"
)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (NO_PYTHON + EXITED, "execve(): /opt/python: No such file or directory"),
        ("execve(): /opt/python: No such file or directory\n", "execve(): /opt/python: No such file or directory"),
        (LOADING + "srun: error: n1: task 0: Killed\n", "n1: task 0: Killed"),
        (LOADING + "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***\n", None),
        (LOADING + EXITED, None),
        (OVER_130 + LOADING + NO_PYTHON + EXITED, "execve(): /opt/python: No such file or directory"),
        (NO_PYTHON + EXITED + OVER_130, "interrupted"),
        (LOADING + OOM_OF_A_GROUP, "oom: n1: task 0: Out Of Memory"),
        (LOADING + OOM_OF_ACCOUNTING, "oom: StepId=1.0 exceeded memory limit (328 > 104), being killed"),
        (SETUP, "setup line failed with exit status 1: source /no/setup\nline 9: /no/setup: No such file or directory"),
        (
            "slurm_script: line 9: /no/setup: No such file or directory\n",
            "line 9: /no/setup: No such file or directory",
        ),
    ],
)
def test_what_ended_a_task_is_read_from_its_log(log: str, words: str | None) -> None:
    assert last_words(log) == words


def test_the_log_is_where_submitit_lets_slurm_write_it(tmp_path: Path) -> None:
    """Slurm itself is asked in tests/slurm; this is the script that it would get."""
    script = _make_sbatch_string("true", tmp_path, map_count=3, stderr_to_stdout=True)
    assert "%A_%a_0_log.out" in script
    assert "_log.err" not in script
    found = submitted(tmp_path / "sweep", 1)
    (found.folder / "logs" / "7_0_0_log.out").write_text("there")
    assert log_of(found, found.tasks[0], "7_0") == "there"
    assert log_of(found, found.tasks[0], "7_1") is None


def test_done_is_done_whichever_submission_measured_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two submits at once: one task of each pair is refused by the lock, the other one measures."""
    submitted(tmp_path, 2, age_s=1000)
    for i in range(2):
        ended(tmp_path / f"{i}_run", State.DONE, 0, f"6_{i}")
    says(monkeypatch, {"7_1": "PENDING"}, {"7_0": "FAILED"})
    found = status(tmp_path)
    assert [str(one.state) for one in found] == ["done", "done"]
    assert overall(found) == 0
    assert grids.run("status", str(tmp_path)) == 0


def test_a_look_at_runs_that_failed_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path / "0_run", State.DONE, 0)
    assert grids.run("status", str(tmp_path)) == 0
    ended(tmp_path / "1_run", State.FAILED, 2, reason="out of luck")
    assert grids.run("status", str(tmp_path)) == 1
    assert "out of luck" in capsys.readouterr().out


def test_a_study_is_followed_by_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {i: (Task(index=i, directory=f"{i}_all", overrides=(f"seed={i}",)), CONFIG) for i in (0, 1, 10)}
    new_submission(tmp_path, cluster="local", job_name="test", tasks=tasks, settings={})
    for folder in ("0_all", "0_all/phase1", "0_all/phase2", "1_all", "10_all"):
        ended(tmp_path / folder, State.DONE, 0)
    for folder in ("0_all/phase1", "0_all/phase2", "1_all"):
        (tmp_path / folder / "records.jsonl").touch()
    found = status(tmp_path)
    assert [row["run"] for row in table(found, tmp_path)] == [
        "0_all", "0_all/phase1", "0_all/phase2", "1_all", "10_all",
    ]  # fmt: skip
    assert found[1].run.study == found[0].run
    assert found[1].run.overrides == ("seed=0",)
    assert after_multirun(tmp_path) == 0
    assert "3 of 3 tasks done" in capsys.readouterr().err


def test_a_part_runs_while_its_study_does(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "phase1"):
        folder.mkdir(exist_ok=True)
        OutcomeFile(folder).begin()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    assert states(tmp_path) == ["running", "running"]
    holder.kill()
    holder.communicate()
    assert states(tmp_path) == ["lost", "lost"]


def test_an_oom_by_the_log_says_oom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = submitted(tmp_path, 2, age_s=1000)
    says(monkeypatch, {}, {"7_0": "FAILED", "7_1": "OUT_OF_MEMORY"})
    (found.folder / "logs" / "7_0_0_log.out").write_text(OOM_OF_A_GROUP)
    for one in status(tmp_path):
        assert one.state == RunState.FAILED
        assert one.reason.startswith("oom: killed for too much host memory (raise hydra.launcher.memory_gb)")


def test_a_run_that_another_submission_works_on_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two submits the later one's task is refused by the lock, and the earlier one's goes on."""
    submitted(tmp_path, 2, age_s=1000)
    later = submitted(tmp_path, 2, age_s=500).with_ids({0: "8_0", 1: "8_1"})
    later.write()
    (tmp_path / "0_run").mkdir()
    OutcomeFile(tmp_path / "0_run").begin()
    says(monkeypatch, {"7_0": "RUNNING", "7_1": "PENDING"}, {"8_0": "FAILED", "8_1": "CANCELLED"})
    assert [(str(one.state), one.job_id) for one in status(tmp_path)] == [("running", "7_0"), ("queued", "7_1")]
    says(monkeypatch, {}, {"8_0": "FAILED", "8_1": "CANCELLED"})
    assert states(tmp_path) == ["failed", "cancelled"]


SUBMIT = (
    "import sys, time; from pathlib import Path; from vlmbench.cluster.remaining import submitting\n"
    "with submitting(Path(sys.argv[1])): print('submitting', flush=True); time.sleep(60)"
)


def test_of_two_submits_at_once_the_second_is_refused_in_one_line(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", SUBMIT, tmp_path], stdout=subprocess.PIPE)
    assert first.stdout.readline()
    with pytest.raises(DirectoryConflictError) as refused, submitting(tmp_path):
        pass
    first.kill()
    first.communicate()
    assert str(refused.value).count("\n") == 0
    assert f"nothing was submitted: process {first.pid} on host " in str(refused.value)
    stray = tmp_path / FOLDER / "one" / ".submission.json.x1.part"
    stray.parent.mkdir()
    stray.touch()
    with submitting(tmp_path):  # a killed submit holds nobody up, and what it left half-written goes
        assert not stray.exists()


@pytest.mark.parametrize("harm", ["emptied", "removed"])
def test_done_without_its_rows_is_lost_and_is_run_again(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "0_run"
    begin_session(folder, collect({"seed": 1}, model_facts={}, device="cpu", seed=1))
    file = OutcomeFile(folder)
    file.begin()
    file.progress(rows=54)
    file.end(State.DONE, exit_status=0)
    (folder / "records.jsonl").write_text("{}\n")
    composed = {0: (Task(index=0, directory="0_run", overrides=()), {"seed": 1})}
    assert states(tmp_path) == ["done"]
    assert to_do(tmp_path, composed) == {}
    (folder / "records.jsonl").write_text("") if harm == "emptied" else (folder / "records.jsonl").unlink()
    (one,) = status(tmp_path)
    assert one.state == RunState.LOST
    assert one.reason == f"its 54 rows are gone: records.jsonl is {'empty' if harm == 'emptied' else 'missing'}"
    assert list(to_do(tmp_path, composed)) == [0]
    assert table([one], tmp_path)[0]["progress"] == "54 rows when last heard of"
    assert grids.run("status", str(tmp_path)) == 1
    assert "54 rows are gone" in " ".join(capsys.readouterr().out.split())
    (folder / "records.jsonl").unlink(missing_ok=True)
    for packed in ("records.jsonl.gz", "records.jsonl.xz"):
        (folder / packed).touch()
        assert states(tmp_path) == ["done"]
        (folder / packed).unlink()


def held_run(folder: Path) -> subprocess.Popen[bytes]:
    """A process that holds a run directory that it began."""
    folder.mkdir(parents=True)
    OutcomeFile(folder).begin()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    return holder


def test_a_stopped_process_is_suspended_and_a_quiet_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "0_run"
    holder = held_run(folder)
    try:
        (one,) = status(tmp_path)
        assert (one.state, one.reason) == (RunState.RUNNING, None)
        assert one.sign_s < 60
        os.utime(folder / OUTCOME_NAME, (time.time() - 600, time.time() - 600))
        (one,) = status(tmp_path)
        assert one.state == RunState.RUNNING
        assert "no sign of life for 10 minutes" in one.reason
        assert table([one], tmp_path)[0]["sign"].startswith("10 min")
        holder.send_signal(signal.SIGSTOP)
        os.waitpid(holder.pid, os.WUNTRACED)  # it takes effect when the process is next given a processor
        (one,) = status(tmp_path)
        assert (one.state, one.reason) == (RunState.SUSPENDED, f"process {holder.pid} is held still by SIGSTOP")
    finally:
        holder.kill()
        holder.communicate()


def test_what_slurm_suspends_is_suspended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(tmp_path, 1, age_s=1000)
    says(monkeypatch, {"7_0": "SUSPENDED"})
    (one,) = status(tmp_path)
    assert one.state == RunState.SUSPENDED
    assert "scontrol resume 7_0" in one.reason
    assert one.exit_status == 1
    assert one.state not in OVER


def test_jobs_whose_turn_did_not_come_are_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = submitted(tmp_path, 3, cluster="basic", ids=False, age_s=1000)
    ended(tmp_path / "0_run", State.DONE, 0)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, found.folder], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    assert states(tmp_path) == ["done", "queued", "queued"]
    holder.kill()
    holder.communicate()
    assert states(tmp_path) == ["done", "not begun", "not begun"]
    assert overall(status(tmp_path)) == 130
    grids.run("status", str(tmp_path))
    assert "1 done, 2 not begun" in capsys.readouterr().out


def test_a_damaged_submission_hides_no_other_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(tmp_path / "good" / "0_run", State.DONE, 0)
    submitted(tmp_path / "good", 1, cluster="local")
    bad = submitted(tmp_path / "bad", 1).folder / "submission.json"
    for text in ('{"cluster": "slurm"}', "[1]", "", "{" * 2000):
        bad.write_text(text)
        assert states(tmp_path) == ["done"]
        assert f"cannot read '{bad}'" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_run_that_may_not_be_read_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records.jsonl").touch()
    (tmp_path / "theirs").chmod(0)
    try:
        assert [run.directory.name for run in find_runs(tmp_path)] == ["mine"]
        assert "theirs' may not be read" in capsys.readouterr().err
        with pytest.raises(InputError, match="may not be read"):
            find_runs(tmp_path / "theirs")
    finally:
        (tmp_path / "theirs").chmod(0o700)


def test_a_task_that_waits_for_turns_learns_which_others_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = tmp_path / "turns"
    found = submitted(tmp_path, 7)
    for task in found.tasks:
        folder = turns if task.index != 6 else tmp_path / "elsewhere"
        content = {**CONFIG, "config": {"measurement": {"turns": {"directory": str(folder)}}}}
        found.task_file(task).write_text(json.dumps(content))
    runs = [found.run_dir(task) for task in found.tasks]
    ended(runs[5], State.DONE, 0, "7_5")
    says(monkeypatch, {"7_0": "RUNNING", "7_1": "PENDING", "7_2": "RUNNING"}, {f"7_{i}": "FAILED" for i in (3, 4, 6)})
    (found.folder / "logs" / "7_3_0_log.out").write_text("slurm_script: setup line failed with exit status 1: load x\n")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert started_with(runs[0], turns) == StartedTogether(), "none of Slurm"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    known = started_with(runs[0], turns)
    assert known.coming == (member_name(runs[1]), member_name(runs[2])), "queued, and begun but nothing said yet"
    (how, log), (_, other) = known.ended
    assert how.startswith(f"task {found.tasks[3].directory} failed: it ended without a result (Slurm: FAILED")
    assert how.endswith(": setup line failed with exit status 1: load x")
    assert log == f"its log: .vlmbench/{found.name}/logs/7_3_0_log.out"
    assert other == "it left no log"
    says(monkeypatch, {}, {"7_4": "FAILED"}, exit_code="")  # no accounts are kept
    assert started_with(runs[0], turns).ended[0][0].endswith(": it ended without a result (Slurm: FAILED)")
    says(monkeypatch, None)
    silent = started_with(runs[0], turns)
    assert (len(silent.coming), silent.ended) == (4, ()), "without Slurm's word nobody is given up"
    assert started_with(tmp_path / "no grid" / "run", turns) == StartedTogether()
    found.task_file(found.tasks[6]).write_text("{}")
    says(monkeypatch, {"7_6": "PENDING"})
    assert started_with(runs[0], turns).coming[-1] == member_name(runs[6]), "one whose settings are no more may come"


def in_turns(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch, count: int = 4) -> tuple[Submission, list[Path]]:
    """Tasks of Slurm that take turns in ``sweep_dir/turns``: the last one failed, all others run."""
    found = submitted(sweep_dir, count, age_s=1000)
    content = {"config": {"measurement": {"turns": {"directory": str(sweep_dir / "turns")}}}}
    for task in found.tasks:
        found.task_file(task).write_text(json.dumps(content))
    says(monkeypatch, {f"7_{i}": "RUNNING" for i in range(count - 1)}, {f"7_{count - 1}": "FAILED"})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return found, [found.run_dir(task) for task in found.tasks]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state": "finished"}', "{" * 3000])
def test_who_left_an_unreadable_account_is_what_slurm_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    _, runs = in_turns(tmp_path, monkeypatch)
    for run in runs[1:]:
        run.mkdir()
        (run / OUTCOME_NAME).write_text(text)
    known = started_with(runs[0], tmp_path / "turns")
    assert known.coming == (member_name(runs[1]), member_name(runs[2]))
    assert [how for how, _ in known.ended] == [f"task 3_run failed: {' '.join(status(tmp_path)[3].reason.split())}"]
    assert [str(runs[i] / OUTCOME_NAME) in known.unreadable[i - 1] for i in (1, 2)] == [True, True]
    assert states(tmp_path) == ["running", "running", "running", "failed"]
    says(monkeypatch, None)
    assert states(tmp_path)[1:] == ["unknown"] * 3


@pytest.mark.parametrize("given", [5, [1], {"a": 1}, True, "~nobody_of_that_name/turns", "\ud800"])
def test_settings_of_another_kind_end_nobody_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: object
) -> None:
    found, runs = in_turns(tmp_path, monkeypatch)
    content = {"config": {"measurement": {"turns": {"directory": given}}}}
    found.task_file(found.tasks[1]).write_text(json.dumps(content))
    assert member_name(runs[2]) in started_with(runs[0], tmp_path / "turns").coming


@pytest.mark.parametrize("name", ["pid", "process_started_unix_s", "booted_unix_s", "since_unix_s", "host", "job_id"])
@pytest.mark.parametrize("value", ["x", [1], -1e300, 10**400])
def test_a_lock_file_of_another_kind_ends_nobody_who_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    _, runs = in_turns(tmp_path, monkeypatch)
    for run in runs[1:]:
        run.mkdir()
        (run / ".run.lock").write_text(json.dumps({**asdict(Holder.myself()), name: value}))
    assert len(started_with(runs[0], tmp_path / "turns").coming) == 2
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / ".run.lock").write_text((runs[1] / ".run.lock").read_text())
    with RunLock(tmp_path / "alone"):
        pass


def test_an_unreadable_submission_gives_up_nobody_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmbench.machine.turns._ASK_S", 0.1)
    found, runs = in_turns(tmp_path, monkeypatch, 2)
    content = json.loads((found.folder / "submission.json").read_text())

    def with_directory(name: str) -> str:
        return json.dumps({**content, "tasks": [{**content["tasks"][1], "directory": name}]})

    (found.folder.parent / "later").mkdir()
    bad = found.folder.parent / "later" / "submission.json"
    for text in (
        "",
        "[1]",
        json.dumps({**content, "submitted_unix_s": 10**400}),
        *map(with_directory, "\0\ud800"),
        with_directory("x" * 300),
    ):
        bad.write_text(text)
        assert len(started_with(runs[0], tmp_path / "turns").unreadable) == 1
        known = partial(started_with, runs[0], tmp_path / "turns")
        with (
            Turns(directory=tmp_path / "turns", of=runs[0], wait_s=0.8, started_with=known) as turns,
            pytest.raises(MeasurementError, match=r"waited 0.8 s for a turn"),
        ):
            turns.take(lambda: False)
        said = [line for line in capsys.readouterr().err.splitlines() if str(bad) in line]
        assert len(said) == 1, said
        assert said[0].endswith(". Whoever it tells of counts as one that may come.")
