"""``experiment=compare``: two sides against each other, for a reader and for CI; and baselines kept by name."""

from __future__ import annotations

import sys
from pathlib import Path

from vlmbench.errors import BAD_INPUT, OK, ConfigError
from vlmbench.schema import DECIDING_TIMES
from vlmbench.session.settings import RunConfig
from vlmbench.text import say, show, shown


def compare(settings: RunConfig) -> int:
    """Compare the candidate with the baseline; keep it as a baseline where that was asked for and it is no slower.

    Returns:
        0: no regression beyond the threshold; 1: some; 2: not everything could be compared.

    Raises:
        ConfigError: a side is not named.
        InputError: they cannot be compared; the message says why in two lines.
        MeasurementError: a file cannot be written.
    """
    from vlmbench.analysis.results import read_results
    from vlmbench.records import baselines

    name, folder = settings.save_baseline, Path(settings.baselines).expanduser()
    if not settings.candidate or not (settings.baseline or name):
        raise ConfigError(
            "experiment=compare needs baseline=DIR|NAME candidate=DIR: runs, grids, or the name of a saved baseline\n"
            "keep a baseline with experiment=compare candidate=DIR save_baseline=NAME"
        )
    if name:
        baselines.check_name(name)
    candidate = Path(settings.candidate).expanduser()
    status = _judged(settings, baselines.find(settings.baseline, folder), candidate) if settings.baseline else OK
    if not name:
        return status
    if status != OK:
        say(f"baseline '{name}' is left as it was: the candidate is slower or cannot be compared")
        return status
    runs = [run.path for run in read_results(candidate)]
    say(f"saved as baseline '{name}': {shown(baselines.save(name, runs, candidate, folder))}")
    return status


def _judged(settings: RunConfig, baseline: Path, candidate: Path) -> int:
    from vlmbench.analysis.two_sides import judge
    from vlmbench.report.comparison import advice, headline, text, write

    verdict = judge(
        baseline,
        candidate,
        threshold=settings.threshold,
        allow_unlike=settings.allow_unlike,
        gate=settings.gate or DECIDING_TIMES,
    )
    show(text(verdict))
    if settings.output_dir:
        for file in write(verdict, Path(settings.output_dir)):
            say(f"written: {shown(file)}")
    if verdict.exit_status == BAD_INPUT:
        sys.stdout.flush()
        say(f"{headline(verdict)}\n{advice(verdict)}")
    return verdict.exit_status
