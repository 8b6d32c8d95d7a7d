"""The Hydra entry: compose, validate, build, run. Imports no torch until a run starts.

Exit status: 0 all points ok; 1 the run finished but some points failed or none could be measured; 2 bad configuration
or input, before anything was measured; 130 interrupted, resumable.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
import psutil
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmbench.cli import config as schema
from vlmbench.cli import early_checks, environment, hydra_errors, trials, validate
from vlmbench.cli.argument_order import arranged
from vlmbench.cli.config import write_composed
from vlmbench.cli.own_options import taken
from vlmbench.cli.run_names import is_search
from vlmbench.cli.secrets import as_written, flushed, keep_out_of_output, open_standard_streams, refuse_in_grid
from vlmbench.errors import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    OK,
    ConfigError,
    DirectoryConflictError,
    InputError,
    MeasurementError,
    RowsLostError,
    VlmbenchError,
)
from vlmbench.machine.host import started_by_torchrun
from vlmbench.machine.installation import conf_dir
from vlmbench.machine.turns import Turns
from vlmbench.models.parallel import tensor_parallel
from vlmbench.models.parallel.follower import Follower
from vlmbench.records.lock import is_held
from vlmbench.session.settings import QUESTIONS
from vlmbench.session.signals import ending_in_imports, heed, interrupt_on_signals, interrupted_in_words_of_others
from vlmbench.text import Level, level, say, shown

if TYPE_CHECKING:
    from vlmbench.records.outcome import OutcomeFile
    from vlmbench.session.job import Job


_TRACEBACK = "VLMBENCH_TRACEBACK"
_SHOWN = 10
_statuses: list[int] = []  # of the jobs of this process
_stopped: list[str] = []  # jobs of this process that the user stopped
_onward: list[str] = []  # how the multirun of this process is continued


def main() -> NoReturn:
    """Run the command line and exit; of several processes of torchrun the first does, the others do as it says."""
    os.environ["MPLBACKEND"] = "agg"  # figures are files; that of a notebook may not be installed here
    open_standard_streams()
    keep_out_of_output()
    try:
        _lead_or_follow()
    except SystemExit as end:
        if not flushed() and not end.code:
            sys.exit(FAILED)
        raise


def _lead_or_follow() -> NoReturn:
    if not started_by_torchrun():
        _main()
    try:
        with tensor_parallel.joined() as team:
            if team.leads:
                _main()
            from vlmbench.models.loading import load

            sys.exit(Follower(team, load).follow())
    except VlmbenchError as error:
        if os.environ["RANK"] == "0" or not os.environ["RANK"].isdecimal():
            say(str(error))
        sys.exit(error.exit_status)


def _main() -> NoReturn:
    want_traceback = bool(os.environ.get(_TRACEBACK) or os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself and exits with 1 whatever they are
    schema.register()
    try:
        interrupt_on_signals()
        _check_working_directory()
        entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)
        sys.argv[1:] = arranged(taken(sys.argv[1:]))
        want_traceback = want_traceback or level() == Level.VERBOSE
        hydra_errors.check_folders(sys.argv[1:])
        warnings.filterwarnings("error", hydra_errors.ABSENT.pattern)
        with interrupted_in_words_of_others():
            entry()
    except KeyboardInterrupt:
        heed()
        if not _stopped:  # else the job and its launcher have said so
            say(f"interrupted; {_onward[-1]}" if _onward else "interrupted before anything was measured")
        sys.exit(INTERRUPTED)
    except (HydraException, OmegaConfBaseException, VlmbenchError) as error:
        if want_traceback:
            traceback.print_exc()
        say(hydra_errors.compact(error))
        trials.show_last()
        sys.exit(error.exit_status if isinstance(error, VlmbenchError) else BAD_INPUT)
    except UserWarning as error:
        say(hydra_errors.of_search_path(error))
        sys.exit(BAD_INPUT)
    except yaml.YAMLError as error:
        if want_traceback:
            traceback.print_exc()
        say(hydra_errors.of_yaml(error))
        sys.exit(BAD_INPUT)
    except Exception as error:  # a job raises nothing: these are Hydra's launcher, sweeper, logging, options
        if want_traceback:
            traceback.print_exc()
        say(trials.ended_without_value(error) or hydra_errors.outside_a_run(error))
        trials.show_last()
        sys.exit(FAILED if _statuses else BAD_INPUT)
    sys.exit(overall(_statuses))


def job(config: DictConfig) -> Any:
    """One job, as Hydra calls it: of a single run, or of a multirun (in this process or on another machine).

    Returns:
        The exit status; with ``objective`` in a multirun the values that its sweeper asked for.

    Raises:
        MeasurementError: a job of a search that did not end well: a failed trial, never a value.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    status = run_job(config)
    hydra_is = HydraConfig.get()
    if hydra_is.mode != RunMode.MULTIRUN or not is_search(str(hydra_is.sweeper.get("_target_"))):
        return status
    if status != OK and is_held(directory):  # two trials of the same settings at once: the other measures them
        while is_held(directory):
            time.sleep(0.5)
        status = run_job(config)
    return objective_values(directory, status)


def objective_values(directory: Path, status: int | None) -> float | list[float]:
    """What a run's sweeper gets: a number, or a list where several were asked for.

    Raises:
        MeasurementError: the run did not end well.
    """
    from vlmbench.records.objective import kept
    from vlmbench.records.outcome import read_outcome

    found = kept(directory) if status == OK else None
    if not found:
        outcome = read_outcome(directory)
        why = (outcome.reason if outcome else None) or f"exit status {status}"
        raise MeasurementError(f"failed trial in '{shown(directory)}': {why.splitlines()[0]}")
    values = [one.value for one in found]
    return values[0] if len(values) == 1 else values


def run_job(config: DictConfig) -> int:
    """Run one job and write down how it ended. Never raises.

    The truth about its end is in the run directory (``outcome.json``); the return value repeats it.
    """
    from vlmbench.records.outcome import Cause, OutcomeFile, State
    from vlmbench.session import ending
    from vlmbench.session.ending import to_continue

    keep_out_of_output()  # another process than the command's, with some launchers
    outcome = OutcomeFile(Path(HydraConfig.get().runtime.output_dir))
    again = to_continue(outcome.directory, config.output_dir)
    if (team := tensor_parallel.current()) is not None:
        team.on_loss = partial(ending.note_loss, outcome, again)

    def interrupted() -> None:
        heed()
        asks = config.task in QUESTIONS
        reason = "interrupted" if asks else f"interrupted; {again}"
        if not asks:
            ending.keep(outcome, State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason, cause=Cause.STOPPED)
        say(reason)

    def interrupted_in_import() -> bool:
        if outcome.now.started_unix_s or config.task == "export":  # a folder half-written
            return False
        interrupted()
        return True

    try:
        with interrupted_in_words_of_others(), ending_in_imports(interrupted_in_import):
            status = _dispatch(config, outcome)
    except KeyboardInterrupt:
        status = INTERRUPTED
        interrupted()
    except Exception as caught:  # whatever it is, it must be in the outcome file, not only on a lost terminal
        error = _in_our_words(caught)
        status = error.exit_status if isinstance(error, VlmbenchError) else FAILED
        if config.task == "compare":  # where 1 says that something became slower
            status = BAD_INPUT
        if not isinstance(error, VlmbenchError) or os.environ.get(_TRACEBACK) or level() == Level.VERBOSE:
            traceback.print_exc()
        if isinstance(error, DirectoryConflictError) and not outcome.now.started_unix_s:
            ending.note_refusal(outcome, error, as_written(config))
        elif config.task not in QUESTIONS:
            if isinstance(error, RowsLostError):
                outcome.follow(error.moved_to)  # beside the rows, wherever they are now
            ending.keep(outcome, State.FAILED, exit_status=status, error=error)
        say(str(error) if isinstance(error, VlmbenchError) else f"{type(error).__name__}: {error}")
    _statuses.append(status)
    if status == INTERRUPTED and outcome.now.cause != Cause.TIME_LIMIT:
        _stopped.append(outcome.directory.name)
    return status


def _check_working_directory() -> None:
    """Refuse to run in a directory that is no more: Hydra's words would be about something else.

    Raises:
        InputError: it was removed, or may not be looked at.
    """
    try:
        Path.cwd()
    except OSError as found:
        raise InputError(
            f"the working directory is not there any more ({found.strerror}): it was removed or replaced\n"
            "change to one that is (cd ~), and run the command again"
        ) from None


def _in_our_words(error: Exception) -> Exception:
    """An error of the system or of a variable of the environment as a user's; any other as it is."""
    if isinstance(error, VlmbenchError):
        return error
    return _of_permission(error) if isinstance(error, PermissionError) else environment.refused(error) or error


def _of_permission(error: PermissionError) -> InputError:
    place = error.filename or "a file"
    return InputError(
        f"'{place}' may not be read or written by this user ({error.strerror})\nallow it, or name another"
    )


def end_sweep(jobs: Sequence[Sequence[str]], begun: int, first_index: int) -> None:
    """Say what a multirun that the user stopped leaves undone (the launcher of this process calls it).

    Args:
        begun: how many of them were begun.
    """
    rest = [f"#{i} {' '.join(o)}".rstrip() for i, o in enumerate(jobs[begun:], start=first_index + begun)]
    more = f" and {len(rest) - _SHOWN} more" if len(rest) > _SHOWN else ""
    undone = f"not begun: {'; '.join(rest[:_SHOWN])}{more}" if rest else "all were begun"
    onward = _onward[-1] if _onward else "run the same command again to continue"
    say(f"the sweep ends here, {_statuses.count(OK)} of {len(jobs)} jobs ok, {undone}\n{onward}")


def is_stopped() -> bool:
    """Whether the user stopped a job of this process; one that met its time limit was not stopped."""
    return bool(_stopped)


def _dispatch(config: DictConfig, outcome: OutcomeFile) -> int:
    """Validate, then hand over to the task; torch is imported from here on."""
    from vlmbench.cli import tasks

    try:
        made = _job(config, list(HydraConfig.get().overrides.task), outcome)
        with tasks.turns_of(made):
            early_checks.check(made)
            for doubt in early_checks.doubts(made):
                say(f"warning: {doubt}")
            return tasks.run(made)
    except (HydraException, OmegaConfBaseException) as error:  # an interpolation that leads nowhere, say
        raise ConfigError(hydra_errors.compact(error)) from error


def _job(config: DictConfig, overrides: list[str], outcome: OutcomeFile, turns: Turns | None = None) -> Job:
    """What the task functions get: checked, plain, with components and parts built when asked for."""
    from vlmbench.cluster.turn_members import started_with
    from vlmbench.records.outcome import OutcomeFile
    from vlmbench.session.job import Job

    settings = validate.validate(config)
    asked = settings.measurement.turns
    folder = None if asked.directory is None else Path(asked.directory).expanduser()
    turns = turns or Turns(
        directory=folder,
        of=outcome.directory,
        members=asked.members,
        runs=asked.runs,
        wait_s=asked.wait_s,
        began_unix_s=psutil.Process().create_time(),
        started_with=None if folder is None else partial(started_with, outcome.directory, folder),
    )

    def part(name: str, choices: list[str]) -> Job:
        chosen = {choice.partition("=")[0] for choice in choices} | {"output_dir", "hydra/launcher"}
        mine = [o for o in overrides if o.partition("=")[0].lstrip("+~") not in chosen]
        try:
            composed = hydra.compose(config_name="config", overrides=[*choices, *mine])
        except (HydraException, OmegaConfBaseException) as error:
            words = " ".join(hydra_errors.compact(error).splitlines())
            raise ConfigError(
                f"part '{name}' cannot be composed: {words}\nIt is made of {' '.join([*choices, *mine])}"
            ) from error
        return _job(composed, [*choices, *mine], OutcomeFile(outcome.directory / name), turns)

    plain = as_written(config)
    return Job(
        settings=settings,
        config=plain,
        overrides=overrides,
        directory=outcome.directory,
        outcome=outcome,
        build=lambda key: validate.build(OmegaConf.select(config, key)),
        part=part,
        write_composed=partial(write_composed, outcome.directory, plain, overrides),
        turns=turns,
    )


def overall(statuses: list[int]) -> int:
    """One exit status for several jobs: their common one, 130 when any was interrupted, else 1."""
    if not statuses or set(statuses) == {OK}:
        return OK
    if INTERRUPTED in statuses:
        return INTERRUPTED
    return BAD_INPUT if set(statuses) == {BAD_INPUT} else FAILED


class Outcomes(Callback):
    """After a multirun: what became of each job, from the files they wrote, wherever they ran."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse secrets in plain words; note how to continue, should the user stop it.

        A link where Hydra is about to write is removed.
        """
        from vlmbench.session.ending import SWEEP_FILE

        try:
            refuse_in_grid(config)
            trials.begin(config)
        except ConfigError as error:  # Hydra passes over what a callback raises, but not over an exit
            say(str(error))
            sys.exit(error.exit_status)
        given = bool(config.output_dir)
        again = "" if given else f"with {shlex.quote(f'output_dir={shown(Path(config.hydra.sweep.dir))}')} "
        _onward.append(f"run the same command {again or 'again '}to continue")
        kept = Path(config.hydra.sweep.dir) / SWEEP_FILE
        if kept.is_symlink():  # Hydra would write through it, into a file that may be another's
            kept.unlink()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collect exit statuses and name what failed."""
        from vlmbench.cli.grids import after_multirun
        from vlmbench.records.outcome import read_outcome

        sweep_dir = Path(config.hydra.sweep.dir)
        trials.show_trials(sweep_dir)
        if not _statuses and (status := after_multirun(sweep_dir)) is not None:
            _statuses[:] = [status]
            return
        folders = sorted(p for p in sweep_dir.iterdir() if p.is_dir() and not p.name.startswith("."))
        outcomes = {folder.name: outcome for folder in folders if (outcome := read_outcome(folder)) is not None}
        for name, outcome in outcomes.items():
            if outcome.exit_status != OK:
                say(f"{name}: {outcome.state}: {outcome.reason or 'no word from it'}")
        if not _statuses:  # the jobs ran in other processes
            _statuses[:] = [FAILED if o.exit_status is None else o.exit_status for o in outcomes.values()]
        say(f"{_statuses.count(OK)} of {len(_statuses)} jobs ok in {sweep_dir}")


for _chatty in ("matplotlib", "fontTools", "huggingface_hub", "urllib3", "httpx"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)
