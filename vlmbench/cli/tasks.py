"""What ``task=`` can be: one function a task. Gets a job of plain values and built components, never a DictConfig."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.errors import FAILED, OK, ConfigError
from vlmbench.machine.processors import Processors
from vlmbench.records.config_history import ADDED
from vlmbench.session.job import Job
from vlmbench.text import count, say, show, shown

if TYPE_CHECKING:
    from vlmbench.models.anatomy.find import AnatomyRow
    from vlmbench.models.anatomy.verify import Verified


ANATOMY_FILE = "anatomy.json"
_WIDTH_ELSEWHERE = 140  # columns at least, where the output is no terminal
_UNLIMITED = 10_000
_MEASURING = ("profile", "study", "budget", "anatomy", "first_steps")


def run(job: Job) -> int:
    """Run the job's task, its figures in the style that was asked for; returns the exit status."""
    from vlmbench.figures.style import drawn_as

    with drawn_as(job.settings.figures.chosen()):
        return _run(job)


def turns_of(job: Job) -> AbstractContextManager[object]:
    """Take part in the turns of the job's machine, where it has some: a job that is refused then lets nobody wait."""
    if job.settings.task not in _MEASURING or job.settings.measurement.turns.directory is None:
        return nullcontext()
    _check_one_after_the_other(job, "processes take turns", "measurement.turns.directory")
    return nullcontext() if job.settings.dry_run else job.turns


def _run(job: Job) -> int:
    task = job.settings.task
    if task in _MEASURING:
        _check_engine(job)
    if task in ("profile", "study", "first_steps"):
        from vlmbench.session.tracking import tracked

        if job.settings.dry_run:
            return _dry_run(job)
        return _with_objective(job, partial(tracked, measure=_measure))
    own = {"budget": _budget, "anatomy": _anatomy, "export": _export, "report": _report}
    if task in own:
        return own[task](job)
    if task == "compare":
        from vlmbench.session.comparing import compare

        return compare(job.settings)
    from vlmbench.cli import grids

    given = job.settings.output_dir
    return grids.run(task, job.settings.runs, Path(given) if given else None)


def _with_objective(job: Job, measure: Callable[[Job], int]) -> int:
    """Measure, and keep what the run is worth to a sweeper; a run that is done already is not measured again.

    Raises:
        MeasurementError: the run has no such value.
    """
    from vlmbench.cluster.remaining import is_done
    from vlmbench.records.objective import keep, names_of, objectives
    from vlmbench.records.provenance import check_directory

    names = names_of(job.settings.objective)
    if not names:
        return measure(job)
    _check_measurable(job, names)
    if check_directory(job.directory, job.config) and is_done(job.directory):
        status = OK
        say(f"measured already: {shown(job.directory)}")
    else:
        status = measure(job)
    if status == OK:
        keep(job.directory, objectives(job.directory, names))
    return status


def _check_measurable(job: Job, names: Sequence[str]) -> None:
    """Refuse a percentile of a data set for which there will be too few requests, before anything is measured.

    Raises:
        ConfigError: such a one; or there will be no summary at all.
    """
    from vlmbench.analysis.quantiles import needed

    if job.settings.report == "none":
        raise ConfigError(f"the objective {', '.join(names)} needs a summary, and report=none writes none")
    samples = job.config["dataset"].get("num_samples")
    if job.settings.workload != "dataset" or not isinstance(samples, int):
        return
    for name in names:
        found = re.search(r"\.p(\d+(?:\.\d+)?)$", name)
        if found and 50 < float(found[1]) < 100 and (least := needed(float(found[1]) / 100)) > samples:
            raise ConfigError(
                f"the objective '{name}' needs {least} requests, and dataset.num_samples is {samples}\n"
                f"Use dataset.num_samples={least} or more, or another objective ({name[: found.start()]}.p50)."
            )


def _budget(job: Job) -> int:
    from vlmbench.session.budget import budget

    return budget(job)


def _dry_run(job: Job) -> int:
    from vlmbench.session.dry_run import dry_run
    from vlmbench.session.study import part_choices

    parts = part_choices(job) if job.settings.task == "study" else {}
    return max(dry_run(part) for part in [job.part(name, choices) for name, choices in parts.items()] or [job])


def _measure(job: Job) -> int:
    if job.settings.task == "profile" and job.settings.runtime.engine == "endpoint":
        from vlmbench.session.serving import profile_endpoint

        return profile_endpoint(job)
    if job.settings.task == "study":
        from vlmbench.session.study import study

        return study(job)
    if job.settings.task == "first_steps":
        from vlmbench.session.first_steps import first_steps

        return first_steps(job)
    from vlmbench.session.profile import profile

    return profile(job)


def _report(job: Job) -> int:
    """Make the report of run directories again; 1 where some of them cannot be read."""
    from vlmbench.report.from_rows import directories, report

    given = job.settings.output_dir
    made = report(
        directories(job.settings.runs),
        Path(given) if given else None,
        extra_figures=job.settings.figures.extra,
    )
    show(made.text)
    say(f"{count(made.runs, 'run')} in {shown(made.page)}")
    return FAILED if made.left_out else OK


def _check_engine(job: Job) -> None:
    """Refuse what the chosen engine cannot do.

    Raises:
        ConfigError: a load, a dry run or an anatomy that does not go with it.
    """
    settings = job.settings
    if settings.runtime.engine == "vllm":
        _check_vllm(job)
    if settings.measurement.change_processor:
        _check_one_after_the_other(job, "the processor is changed", "measurement.change_processor")
        Processors(on=not settings.dry_run)
    if settings.runtime.engine != "endpoint":
        _check_load(job)
        return
    if settings.dry_run:
        raise ConfigError(
            "'dry_run' must be false with runtime=endpoint: the server's model and hardware are not known here\n"
            "predict the model itself: leave runtime=endpoint out, and give model=NAME target_device=NAME"
        )
    if settings.task not in ("profile", "study"):
        raise ConfigError(
            f"task={settings.task} needs the model in this process (got runtime=endpoint)\n"
            "measure a server with experiment=phase1, phase2, phase3, token_comparison or all"
        )


def _check_one_after_the_other(job: Job, what: str, setting: str) -> None:
    """Refuse what is done between runs where it is not the measurement loop that measures.

    Raises:
        ConfigError: a load, a server, first steps, or an anatomy.
    """
    settings = job.settings
    wrong = {
        f"load={settings.load.name}": settings.load.name != "none",
        "runtime=endpoint": settings.runtime.engine == "endpoint",
    }
    unlike = [name for name, is_so in wrong.items() if is_so]
    instead = [f"leave {' and '.join(unlike)} out"] if unlike else []
    if settings.task in ("first_steps", "anatomy"):
        unlike.append(f"task={settings.task}")
        instead.append("measure phase1, phase2, phase3, interventions or a study")
    if unlike:
        raise ConfigError(
            f"{what} between the runs of one request after the other (got {', '.join(unlike)})\n"
            f"leave {setting} out, or {' and '.join(instead)}"
        )


def _check_load(job: Job) -> None:
    """Refuse a load where requests come one after the other.

    Raises:
        ConfigError: an engine that serves one request at a time, or a task that measures no load.
    """
    settings = job.settings
    if settings.load.name == "none":
        return
    if settings.runtime.engine != "vllm":
        raise ConfigError(
            f"load={settings.load.name} needs a server, or vLLM in this process (got runtime={settings.runtime.name})\n"
            "add runtime=vllm, or runtime=endpoint runtime.base_url=http://HOST:PORT/v1 runtime.model=NAME, "
            "or leave load out"
        )
    if settings.task != "profile" or settings.dry_run:
        what = "dry_run=true" if settings.dry_run else f"task={settings.task}"
        raise ConfigError(
            f"a load is measured by experiment=phase1, phase2 or phase3 (got {what} with load={settings.load.name})\n"
            "leave load out, or choose one of those"
        )


def _check_vllm(job: Job) -> None:
    """Refuse what works on the modules of transformers.

    Raises:
        ConfigError: an anatomy, a comparison of attention kernels, or a method.
    """
    if job.settings.task in ("anatomy", "first_steps"):
        raise ConfigError(
            f"task={job.settings.task} looks at transformers' own modules (got runtime=vllm)\n"
            "leave runtime=vllm out; what it marks in vLLM's model stands in provenance.json of its runs"
        )
    if job.config["intervention"]["_target_"] != ADDED["intervention"]["_target_"]:
        raise ConfigError(
            "'intervention' must be none with runtime=vllm: methods change transformers' modules\n"
            "measure the method with runtime=eager or runtime=cudagraph"
        )


def _export(job: Job) -> int:
    """Write the model's folder for servers to ``output_dir``."""
    from vlmbench.models.export import export
    from vlmbench.records.files import whole_folder

    settings = job.settings
    if not settings.output_dir:
        raise ConfigError(
            "experiment=export needs the folder to write (got output_dir=null)\n"
            "python -m vlmbench experiment=export model=NAME output_dir=DIR"
        )
    folder = Path(settings.output_dir)
    options = settings.runtime.options()
    with whole_folder(folder) as made:
        export(job.build("model"), made, runtime=options, weights=settings.export_weights, seed=settings.seed)
    held = "random weights" if settings.export_weights else "no weights (vLLM: --load-format dummy)"
    say(f"configuration, processor, tokenizer and {held} are in {shown(folder)}")
    return OK


def _anatomy(job: Job) -> int:
    """Show which module is which stage, checked by one run, and write it to ``anatomy.json`` of the run directory."""
    from vlmbench.models.anatomy.find import anatomy_table
    from vlmbench.models.anatomy.verify import Verified, verify
    from vlmbench.records.files import write_json
    from vlmbench.session.profile import load_model

    model = load_model(job)
    name, notes = str(model.facts["name"]), model.anatomy.notes
    if model.facts.get("processes", 1) > 1:
        verified = Verified(agrees=None, notes=("no run was made: several processes share the model",))
    else:
        verified = verify(model, model.anatomy)
    rows = [_with_run(row, verified) for row in anatomy_table(model.module, model.anatomy)]
    content = {"schema_version": 1, "model": name, "modules": [asdict(row) for row in rows], "notes": list(notes)}
    path = write_json(job.directory / ANATOMY_FILE, {**content, "verified": verified.as_dict()})
    _print_anatomy(name, rows, [*notes, *verified.notes, *_verdict(verified)])
    sys.stderr.write(f"vlmbench: written to {shown(path)}\n")
    return 0


def _with_run(row: AnatomyRow, verified: Verified) -> AnatomyRow:
    """Add to the rule of a row whether the run saw the module."""
    seen = None if verified.seen is None else dict(verified.seen.stages()).get(row.stage, ())
    if seen is None or row.rule.endswith("seen running") or row.rule == "watching":
        return row
    return replace(row, rule=f"{row.rule}, {'' if row.path in seen else 'not '}seen running")


def _verdict(verified: Verified) -> list[str]:
    """Say whether one run confirms the stages; what to do where it does not."""
    if verified.agrees is None:
        return []
    if verified.agrees:
        return ["one run of an image and two new tokens confirms these stages"]
    return [*verified.differences, "the rules' answer is used; settle it with model.anatomy.STAGE=[PATH,…]"]


def _print_anatomy(name: str, rows: Sequence[AnatomyRow], notes: Sequence[str]) -> None:
    """The table where it fits without breaking a path, else a paragraph a module."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.padding import Padding
    from rich.text import Text

    from vlmbench.report.terminal_tables import anatomy as table

    console = Console()
    natural = Measurement.get(console, console.options.update(width=_UNLIMITED), table(name, rows)).maximum
    if not console.is_terminal:
        console = Console(width=max(_WIDTH_ELSEWHERE, natural))
    if natural <= console.width:
        console.print(table(name, rows, notes))
        return
    console.print(Text(f"Anatomy of {name}", style="bold"))
    for row in rows:
        console.print(Text(f"{row.stage}: {row.path}"))
        size = f"{row.parameters:,} parameters, {row.share:.2%}"
        console.print(Padding(Text(f"{row.module_class}, {size}\nfound by {row.rule}"), (0, 0, 0, 4)))
    for note in notes:
        console.print(Text(f"Note: {note}"))
