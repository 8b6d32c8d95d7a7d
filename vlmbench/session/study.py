"""Several parts with one loaded model in one directory, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmbench.data.opening import opened
from vlmbench.errors import INTERRUPTED, ConfigError, InputError, VlmbenchError
from vlmbench.records.attempts import Attempts
from vlmbench.records.files import write_json
from vlmbench.records.lock import RunLock
from vlmbench.records.outcome import State
from vlmbench.runner.plan import SLOPE, output_counts, vision_counts
from vlmbench.session.ending import to_continue
from vlmbench.session.profile import load_model, profile
from vlmbench.session.series import make_series
from vlmbench.session.serving import profile_endpoint
from vlmbench.session.signals import heed
from vlmbench.sweep import turns_vision
from vlmbench.text import note, say, show, shown

if TYPE_CHECKING:
    from vlmbench.models.protocol import VisionLanguageModel
    from vlmbench.session.job import Job


STUDY_FILE = "study.json"


def study(job: Job) -> int:
    """Measure the parts that are not given as results, then compare tokens; returns the worst exit status.

    Each part has its own sub-directory, is continued when it was interrupted, and is not repeated when it is done.
    A comparison that cannot be made after all ends the study with 1; what was measured stays and is reported.

    Raises:
        InputError: it is known before anything is measured that the comparison cannot be made.
        ConfigError: likewise of a part; or a ``sweep`` was given that is no part's.
    """
    settings = job.settings
    given = {"phase2": settings.phase2_results, "phase3": settings.phase3_results}
    parts = [job.part(name, choices) for name, choices in part_choices(job).items() if not given.get(name)]
    again = to_continue(job.directory, settings.output_dir)
    statuses: list[int] = []
    with RunLock(job.directory, break_lock=settings.break_lock):
        job.outcome.begin(points_total=len(parts) + 1)
        measure = _measuring(job, parts, given)
        for number, part in enumerate(parts, start=1):
            note(f"part {number} of {len(parts)}: {part.settings.name} in {part.directory.name}/")
            statuses.append(measure(part, again=again))
            job.outcome.progress(points_done=number, rows=sum(p.outcome.now.rows for p in parts))
            if statuses[-1] == INTERRUPTED:
                reason = f"{part.directory.name}: {part.outcome.now.reason}"
                job.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason, cause=part.outcome.now.cause)
                _page_so_far(job, parts[:number])
                return INTERRUPTED
        status = _conclude(job, parts, given, statuses)
    say(f"results are in {shown(job.directory)}")
    return status


def _measuring(job: Job, parts: list[Job], given: Mapping[str, str | None]) -> Callable[..., int]:
    """What measures a part: with one model for all of them, or against a server, which is asked by each for itself."""
    if job.settings.runtime.engine == "endpoint":
        return profile_endpoint
    if not parts:
        return profile
    model = load_model(parts[0])
    with _attempts(job.directory) as attempts:
        _check_comparable(parts, given, model, attempts)
    return partial(profile, model=model)


def _conclude(job: Job, parts: list[Job], given: dict[str, str | None], statuses: Sequence[int]) -> int:
    """Compare, report, and write down how the study ended; returns the exit status."""
    failed = [part.directory.name for part, status in zip(parts, statuses, strict=True) if status]
    reasons = [f"parts failed: {', '.join(failed)}"] if failed else []
    status = max(statuses, default=0)
    try:
        show(_together(job, parts, given))
    except InputError as error:
        if not parts:
            raise  # nothing was measured: the results that were given are wrong
        show(_apart(job, parts))
        reasons.append(f"no comparison: {error}")
        say(reasons[-1])
        status = max(status, 1)
    job.outcome.progress(points_done=len(parts) + 1)
    state = State.FAILED if reasons else State.DONE
    job.outcome.end(state, exit_status=status, reason="; ".join(reasons) or None)
    return status


def part_choices(job: Job) -> dict[str, list[str]]:
    """Name of each part to the choices that make it; ``sweep=NAME`` replaces the sweep of the part that it fits.

    Raises:
        ConfigError: it fits none, or single axes were given; or a part was changed by an override.
    """
    parts = {name: list(choices) for name, choices in job.settings.parts.items()}
    if changed := [o for o in job.overrides if _key(o).partition(".")[0] == "parts" and not o.startswith("+")]:
        raise ConfigError(
            f"'{' '.join(changed)}' would change the parts of this study ({', '.join(parts)}), which are fixed; "
            "sweep=NAME replaces the sweep of the part that it fits.\n"
            "Measure another by itself, then compare: experiment=phase2 sweep=… output_dir=DIR, and "
            "experiment=token_comparison phase2_results=DIR"
        )
    given = [o for o in job.overrides if _key(o).partition(".")[0] == "sweep"]
    if not given or not parts:
        return parts
    kinds = {_part_of(name) for name in job.build("sweep").axes}
    part = kinds.pop() if len(kinds) == 1 else None
    if part not in parts or any("sweep." in o.partition("=")[0] for o in given):
        raise ConfigError(
            f"'{' '.join(given)}' is no sweep of one part of this study ({', '.join(parts)}): sweep=vision_tokens, "
            "resolution or images replaces phase2's, prompt_tokens prompt_tokens', language_tokens phase3's.\n"
            "Measure another by itself, then compare: experiment=phase2 sweep=… output_dir=DIR, and "
            "experiment=token_comparison phase2_results=DIR"
        )
    parts[part] = [*(choice for choice in parts[part] if not choice.startswith("sweep=")), given[-1]]
    return parts


def _key(override: str) -> str:
    """What an override changes."""
    return override.lstrip("+~").partition("=")[0]


def _part_of(axis: str) -> str:
    """The part of a study that an axis belongs to; empty for none."""
    return (
        "phase2" if turns_vision(axis) else {"prompt_tokens": "prompt_tokens", "output_tokens": "phase3"}.get(axis, "")
    )


@contextmanager
def _attempts(directory: Path) -> Iterator[Attempts]:
    """What is looked at before the parts begin, named on disk in the study's own directory."""
    attempts = Attempts(directory)
    attempts.open()
    try:
        yield attempts
    finally:
        attempts.close()


def _check_comparable(
    parts: Sequence[Job], given: Mapping[str, str | None], model: VisionLanguageModel, attempts: Attempts
) -> None:
    """Refuse a study whose comparison cannot be made, as far as that is known before anything is measured."""
    found: dict[str, int] = {"vision": 0, "output": 0}
    for part in parts:
        if part.settings.workload != "controlled":
            continue
        series = make_series(part, opened(part.build("dataset")), model, attempts)
        foreseen = vision_counts(model, series, attempts)
        found["vision"] = max(found["vision"], len(foreseen.counts) + foreseen.passed_over)
        found["output"] = max(found["output"], len(output_counts(series)))
    missing = [kind for kind, counts in found.items() if counts < SLOPE]
    if missing and (results := [path for path in given.values() if path]):
        from vlmbench.analysis.results import read_results
        from vlmbench.analysis.token_costs import token_cost

        frames = [one.frame for path in results for one in read_results(Path(path))]
        missing = [kind for kind in missing if all(token_cost(frame, kind) is None for frame in frames)]
    if missing:
        counts = ", ".join(f"{found[kind]} of {kind} tokens" for kind in missing)
        raise InputError(
            f"the comparison needs {SLOPE} counts of vision and of output tokens, and the points of this study make "
            f"{counts}; nothing was measured.\n"
            "Let phase2 sweep vision tokens (sweep=vision_tokens finds counts that the model reaches) and phase3 output"
            " tokens, or name results: phase2_results=DIR phase3_results=DIR"
        )


def _together(job: Job, parts: list[Job], given: dict[str, str | None]) -> str:
    """The token comparison, and a summary that names what each part found and where it lies."""
    from vlmbench.report.token_comparison import write_exp5

    by_name = _note_parts(job, parts)
    swept = [by_name[name] for name in ("phase2", "prompt_tokens") if name in by_name]  # vision and prompt tokens
    phase2 = Path(given["phase2"]) if given["phase2"] else swept
    phase3 = Path(given["phase3"]) if given["phase3"] else by_name["phase3"]
    return write_exp5(phase2, phase3, job.directory, allow_unlike=job.settings.allow_unlike).text


def _note_parts(job: Job, parts: Sequence[Job]) -> dict[str, Path]:
    """Write where each part lies; returns it."""
    by_name = {part.directory.name: part.directory for part in parts}
    summaries = {name: str(Path(name) / "summary.json") for name in by_name}
    write_json(job.directory / STUDY_FILE, {"schema_version": 1, "parts": summaries})
    return by_name


def _page_so_far(job: Job, parts: Sequence[Job]) -> None:
    """The page of the parts that an interrupted study has, where one of them has anything to show."""
    from vlmbench.report.page import write_page

    _note_parts(job, parts)
    try:
        say(f"what there is: {shown(write_page(job.directory))}")
    except KeyboardInterrupt:
        heed()
        say(f"stopped again, so there is no page; experiment=report runs={shown(job.directory)} makes it")
    except VlmbenchError as error:  # the study is ended and can be continued, whatever becomes of its page
        say(f"no page: {error}")


def _apart(job: Job, parts: Sequence[Job]) -> str:
    """The page of what was measured, without a comparison."""
    from vlmbench.report import write_pages

    _note_parts(job, parts)
    return write_pages(job.directory)
