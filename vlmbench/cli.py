"""The Hydra entry: compose, validate, build, run. Imports no torch until a run starts.

Exit status: 0 all points ok; 1 the run finished but some points failed or none could be measured; 2 bad configuration
or input, before anything was measured; 130 interrupted, resumable.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vlmbench import config as schema
from vlmbench import validate
from vlmbench.errors import DirectoryConflictError, VlmbenchError
from vlmbench.models import tensor_parallel
from vlmbench.models.team_follower import Follower

if TYPE_CHECKING:
    from vlmbench.job import Job
    from vlmbench.records.outcome import OutcomeFile

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_TRACEBACK = "VLMBENCH_TRACEBACK"
_statuses: list[int] = []  # of the jobs of this process


def main() -> NoReturn:
    """Run the command line and exit; of several processes of torchrun the first does, the others do as it says."""
    if not tensor_parallel.started_by_torchrun():
        _main()
    try:
        with tensor_parallel.joined() as team:
            if team.leads:
                _main()
            sys.exit(Follower(team).follow())
    except VlmbenchError as error:
        if os.environ["RANK"] == "0":
            _say(str(error))
        sys.exit(error.exit_status)


def _main() -> NoReturn:
    want_traceback = bool(os.environ.get(_TRACEBACK) or os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself and exits with 1 whatever they are
    schema.register()
    entry = hydra.main(version_base="1.3", config_path=str(schema.conf_dir()), config_name="config")(job)
    try:
        entry()
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to continue")
        sys.exit(INTERRUPTED)
    except (HydraException, OmegaConfBaseException, VlmbenchError) as error:
        if want_traceback:
            traceback.print_exc()
        _say(_compact(error))
        sys.exit(error.exit_status if isinstance(error, VlmbenchError) else BAD_INPUT)
    sys.exit(overall(_statuses))


def job(config: DictConfig) -> int:
    """One job: of a single run, or of a multirun (in this process or on another machine). Never raises.

    The truth about its end is in the run directory (``outcome.json``); the return value repeats it.
    """
    from vlmbench.records.outcome import OutcomeFile, State

    outcome = OutcomeFile(Path(HydraConfig.get().runtime.output_dir))
    if (team := tensor_parallel.current()) is not None:
        team.on_loss = lambda reason: _note_loss(outcome, reason)
    try:
        status = _dispatch(config, outcome)
    except KeyboardInterrupt:
        status = INTERRUPTED
        reason = "interrupted; run the same command again to continue"
        outcome.end(State.INTERRUPTED, exit_status=status, reason=reason)
        _say(reason)
    except Exception as error:  # whatever it is, it must be in the outcome file, not only on a lost terminal
        status = error.exit_status if isinstance(error, VlmbenchError) else FAILED
        if not isinstance(error, VlmbenchError) or os.environ.get(_TRACEBACK):
            traceback.print_exc()
        _keep_outcome(outcome, error, status)
        _say(str(error) if isinstance(error, VlmbenchError) else f"{type(error).__name__}: {error}")
    _statuses.append(status)
    return status


def _note_loss(outcome: OutcomeFile, reason: str) -> None:
    """Another process that shares the model failed, and this one is stuck and about to be ended."""
    from vlmbench.records.outcome import State

    outcome.end(State.FAILED, exit_status=FAILED, reason=f"{reason}; run the same command again to continue")


def _dispatch(config: DictConfig, outcome: OutcomeFile) -> int:
    """Validate, then hand over to the task; torch is imported from here on."""
    from vlmbench import tasks

    return tasks.run(_job(config, list(HydraConfig.get().overrides.task), outcome))


def _job(config: DictConfig, overrides: list[str], outcome: OutcomeFile) -> Job:
    """What the task functions get: checked, plain, with components and parts built when asked for."""
    from vlmbench.job import Job
    from vlmbench.records.outcome import OutcomeFile

    def part(name: str, choices: list[str]) -> Job:
        chosen = {choice.partition("=")[0] for choice in choices} | {"output_dir", "hydra/launcher"}
        mine = [o for o in overrides if o.partition("=")[0].lstrip("+~") not in chosen]
        composed = hydra.compose(config_name="config", overrides=[*choices, *mine])
        return _job(composed, [*choices, *mine], OutcomeFile(outcome.directory / name))

    settings = validate.validate(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return Job(
        settings=settings,
        config=resolved,
        overrides=overrides,
        directory=outcome.directory,
        outcome=outcome,
        build=lambda key: validate.build(OmegaConf.select(config, key)),
        part=part,
    )


def _keep_outcome(outcome: OutcomeFile, error: Exception, status: int) -> None:
    """Write the failure down, unless the directory is another run's: its outcome is not ours to replace."""
    from vlmbench.records.outcome import OUTCOME_NAME, State

    ours = outcome.now.started_unix_s > 0 or not (outcome.directory / OUTCOME_NAME).exists()
    if ours and not isinstance(error, DirectoryConflictError):
        try:
            outcome.end(State.FAILED, exit_status=status, error=error)
        except VlmbenchError as disk:
            _say(f"the outcome could not be written: {disk}")


def overall(statuses: list[int]) -> int:
    """One exit status for several jobs: their common one, 130 when any was interrupted, else 1."""
    if not statuses or set(statuses) == {OK}:
        return OK
    if INTERRUPTED in statuses:
        return INTERRUPTED
    return BAD_INPUT if set(statuses) == {BAD_INPUT} else FAILED


def _say(message: str) -> None:
    sys.stderr.write(f"vlmbench: {message}\n")


def _compact(error: BaseException) -> str:
    """One or two lines: what was given, what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, given = error.missing_cfg_file.rpartition("/")
        return f"'{given}' must be one of the choices of {group}: {', '.join(error.options)}"
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        parent = cause.parent_node
        where = f"{parent._get_full_key(None)}." if parent._get_full_key(None) else ""
        return validate.unknown_key(where, str(cause.key), [str(k) for k in parent])
    text = str(error).partition("Config search path")[0].strip()
    if cause is not None and str(cause).strip() and str(cause).strip() not in text:
        text = f"{text}: {str(cause).strip()}"
    noise = ("full_key:", "object_type=", "reference_type=", "See https://hydra.cc")
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(noise))


class Outcomes(Callback):
    """After a multirun: what became of each job, from the files they wrote, wherever they ran."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collect exit statuses and name what failed."""
        from vlmbench.cluster.commands import after_multirun
        from vlmbench.records.outcome import read_outcome

        sweep_dir = Path(config.hydra.sweep.dir)
        if (status := after_multirun(sweep_dir)) is not None:
            _statuses[:] = [status]
            return
        folders = sorted(p for p in sweep_dir.iterdir() if p.is_dir() and not p.name.startswith("."))
        outcomes = {folder.name: outcome for folder in folders if (outcome := read_outcome(folder)) is not None}
        for name, outcome in outcomes.items():
            if outcome.exit_status != OK:
                _say(f"{name}: {outcome.state}: {outcome.reason or 'no word from it'}")
        if not _statuses:  # the jobs ran in other processes
            _statuses[:] = [FAILED if o.exit_status is None else o.exit_status for o in outcomes.values()]
        _say(f"{_statuses.count(OK)} of {len(_statuses)} jobs ok in {sweep_dir}")


for _chatty in ("matplotlib", "fontTools", "huggingface_hub", "urllib3", "httpx"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)
