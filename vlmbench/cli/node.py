"""One task on its node: what was submitted is run, and its exit status is the job's.

The task file (``tasks/<index>.json``) holds the configuration as it was resolved at submit, so that editing YAML while
a job waits changes nothing; texts from the environment (``${oc.env:NAME}``) are looked up by the job itself. Code is
read when the job starts, and a change is recorded and warned of.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vlmbench.cli.secrets import keep_out_of_output
from vlmbench.cluster.last_words import ending
from vlmbench.errors import BAD_INPUT, FAILED, INTERRUPTED, InputError
from vlmbench.records.lock import slurm_job_id
from vlmbench.records.outcome import OutcomeFile, State
from vlmbench.records.provenance import SUBMITTED_SOURCE
from vlmbench.session.signals import end_process, ending_in_imports, heed, interrupt_on_signals
from vlmbench.text import parse_json, said_last, say

_log = logging.getLogger(__name__)
_PARTS: dict[str, Any] = {
    "directory": str, "config": dict, "overrides": list, "source_sha256": str, "requeues": int, "grace_s": int | float,
}  # fmt: skip
_OPTIONAL = {"requeues": 0, "grace_s": 0.0}


def main(task_file: str) -> NoReturn:
    """Run the task and exit with its status; what the scheduler calls."""
    try:
        status = run(Path(task_file))
    except KeyboardInterrupt:
        heed()
        status = _over(INTERRUPTED)
    except InputError as error:
        say(str(error))
        status = _over(BAD_INPUT)
    end_process(status)


def run(task_file: Path) -> int:
    """Run the task; returns its exit status, which ``outcome.json`` in the run directory repeats.

    Signals end it after the current repeat. A task that is preempted, or at its time limit, asks Slurm for another
    turn, in which it continues.
    """
    keep_out_of_output()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    content = _read(task_file)
    directory = task_file.absolute().parents[3] / content["directory"]
    os.environ[SUBMITTED_SOURCE] = content["source_sha256"]  # compared with what runs
    interrupt_on_signals()  # until the run sets its own: nothing is measured yet, so end at once
    began = time.monotonic()

    def over(status: int) -> bool:
        _over(status)
        if status == INTERRUPTED:
            _another_turn(requeues=int(content["requeues"]), grace_s=float(content["grace_s"]))
        return True

    try:
        from vlmbench.cli.compose import run_saved

        with ending_in_imports(partial(over, INTERRUPTED)):
            status = run_saved(content["config"], directory=directory, overrides=content["overrides"])
    except Exception as error:  # the code changed while the job waited, say: the job function itself never raises
        status = FAILED
        OutcomeFile(directory).end(State.FAILED, exit_status=status, error=error)
        _log.exception("the task could not be started")
    _log.info("exit status %d of %s after %.0f s", status, content["directory"], time.monotonic() - began)
    over(status)
    return status


def _over(status: int) -> int:
    """Leave in the log that the task came to its end, and why (see ``vlmbench.cluster.last_words``)."""
    sys.stderr.write(ending(status, said_last() if status else None) + "\n")
    sys.stderr.flush()
    return status


def _read(task_file: Path) -> dict[str, Any]:
    try:
        found = parse_json(task_file.read_bytes())
        wrong = [name for name, kind in _PARTS.items() if not isinstance(found.get(name, _OPTIONAL.get(name)), kind)]
        if wrong or not all(isinstance(one, str) for one in found["overrides"]):
            raise ValueError(f"{', '.join(wrong) or 'overrides'}: missing, or of another kind")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the task file '{task_file}': {error}. Submit it again.") from error
    return {**_OPTIONAL, **found}


def _another_turn(*, requeues: int, grace_s: float) -> None:
    """Requeue this Slurm job if it was stopped by its time limit or by a job of higher priority."""
    job_id = slurm_job_id()
    if job_id is None:
        return
    from vlmbench.cluster import slurm

    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    left = slurm.left_s(job_id)
    at_limit = left is not None and left <= grace_s + 60 and restarts < requeues
    if (at_limit or slurm.is_preempted(job_id)) and slurm.requeue(job_id):
        _log.info("job %s goes back into the queue and will continue (restart %d)", job_id, restarts + 1)
        time.sleep(60)  # Slurm ends this process; leaving by itself could be taken for the job's own end


if __name__ == "__main__":
    main(sys.argv[1])
