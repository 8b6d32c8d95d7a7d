"""Kills of a real measurement at random moments, each followed by a resume: 50, or VLMBENCH_KILLS=200 of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from vlmbench.records.outcome import State, read_outcome
from vlmbench.records.provenance import read_provenance
from vlmbench.records.reading import iter_rows

KILLS = int(os.environ.get("VLMBENCH_KILLS", "50"))
SAMPLES, REPEATS = 10, 4

# The model is loaded once; each attempt is a fork of that process, with everything a run does from its lock to its
# last file. What the store acknowledges goes through a pipe to the parent, which survives.
DRIVER = """
    import os, random, signal, struct, sys, time
    from pathlib import Path

    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    torch.set_num_threads(1)
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from vlmbench.cli import config as schema, validate
    from vlmbench.session import profile as session
    from vlmbench.machine.installation import conf_dir
    from vlmbench.records.outcome import OutcomeFile
    from vlmbench.machine.installation import code_state
    from vlmbench.records.store import RecordStore
    from vlmbench.session.job import Job

    root, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(11)
    schema.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", overrides=[
            "experiment=smoke", "report=none", "dataset.num_samples=10", "output.tokens=2", "measurement.warmup.max_runs=2",
            "measurement.repeats=4", "progress=false", "probe=[timeline]", "device_peaks=none"])
    make = lambda folder: Job(
        settings=validate.validate(config), config=OmegaConf.to_container(config, resolve=True), overrides=[],
        directory=folder, outcome=OutcomeFile(folder, every_s=0.05),
        build=lambda key: validate.build(OmegaConf.select(config, key)), part=None, write_composed=lambda: None)
    model = session.load_model(make(root))
    append = RecordStore.append
    pipe = -1
    def append_and_say(self, record):
        append(self, record)
        os.write(pipe, b"x" * 8)
    RecordStore.append = append_and_say

    def attempt(folder, how):
        # killed at a random moment of its beginning, or at one after its first row
        global pipe
        reader, pipe = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 99
            try: status = session.profile(make(folder), model)
            finally: os._exit(status)
        os.close(pipe)
        acknowledged = 0
        if how == "early":
            time.sleep(rng.random() * 0.6)
        elif how == "late":
            acknowledged += len(os.read(reader, 8)) // 8
            time.sleep(rng.expovariate(1 / 0.15))
        if how:
            os.kill(pid, signal.SIGKILL)
        while data := os.read(reader, 65536): acknowledged += len(data) // 8
        os.close(reader)
        return acknowledged, os.waitpid(pid, 0)[1]

    def lines(folder):
        path = folder / "records.jsonl"
        return sum(line.endswith(b"\\n") for line in path.open("rb")) if path.exists() else 0

    code_state()  # forks share what this process knows of its code
    folder, killed = root / "0", 0
    while killed < kills:
        before = lines(folder)
        acknowledged, status = attempt(folder, rng.choice(("early", "late", "late")))
        killed += os.WIFSIGNALED(status)
        stored = lines(folder) - before
        assert acknowledged <= stored <= acknowledged + 1, (acknowledged, stored)
        if not os.WIFSIGNALED(status):  # it was faster than the kill: on to the next run
            assert os.WEXITSTATUS(status) == 0, status
            folder = root / str(int(folder.name) + 1)
    _, status = attempt(folder, None)
    assert os.WEXITSTATUS(status) == 0, status
"""


@pytest.mark.slow
@pytest.mark.timeout(600 + 10 * KILLS)
def test_kills_of_a_run_on_the_tiny_model_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(DRIVER), tmp_path, str(KILLS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    runs = sorted(path.parent for path in tmp_path.glob("*/records.jsonl"))
    sessions = 0
    for folder in runs:
        rows = [row for row in iter_rows(folder) if row["status"] == "ok"]
        keys = [(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in rows]
        assert len(keys) == len(set(keys)), "measured twice"
        per_sample = Counter(sample for point, sample, _, mode in keys if (point, mode) == ("dataset", "instrumented"))
        assert (len(per_sample), set(per_sample.values())) == (SAMPLES, {REPEATS}), "a row is missing"
        assert read_outcome(folder).state == State.DONE
        sessions += len(read_provenance(folder)["sessions"])
        for path in folder.rglob("*.json"):
            json.loads(path.read_text())
    assert sessions > KILLS / 3, "most kills were to come after the first files were written"
