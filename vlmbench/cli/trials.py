"""Searches of Hydra's sweepers: seeded so that they can be continued, and shown as a table of trials."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vlmbench.cli.run_names import is_search
from vlmbench.errors import ConfigError
from vlmbench.text import DASH, digits, say, show, shown, span

if TYPE_CHECKING:
    from vlmbench.cluster.trials import Trial
    from vlmbench.report.table_cells import Grid

STEM = "trials"
_SHOWN = 50
_searched: list[Path] = []  # directory of this process's search, until its trials were shown


def begin(config: DictConfig) -> None:
    """Note what a search looks for; give its sampler the run's seed where it has none.

    A seeded sampler proposes the same settings in the same order when the same command is run again; those that are
    done are not measured again, and the search goes on where it was.

    Raises:
        ConfigError: an objective that no summary has, or none, which would take exit statuses for values.
    """
    from vlmbench.cluster import trials
    from vlmbench.records.objective import check_names, names_of

    sweeper = config.hydra.sweeper
    if not is_search(str(sweeper.get("_target_") or "")):
        return
    given = OmegaConf.to_container(config.objective) if OmegaConf.is_config(config.objective) else config.objective
    try:
        check_names(given, config.report)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    names = names_of(given)
    if not names:
        raise ConfigError(
            "a search needs to be told what to look for: objective is null\n"
            "Give objective=T_request.p95, or several: 'objective=[T_request.p95,num_vision_tokens]' "
            "'hydra.sweeper.direction=[minimize,maximize]'."
        )
    directions = _directions(sweeper.get("direction"))
    if len(directions) != len(names):
        raise ConfigError(
            f"'hydra.sweeper.direction' must have a direction for each of the {len(names)} objectives "
            f"(got {len(directions)})\nGive hydra.sweeper.direction=minimize, or 'hydra.sweeper.direction="
            "[minimize,maximize]'."
        )
    sampler = sweeper.get("sampler")
    if isinstance(sampler, DictConfig) and "seed" in sampler and sampler.seed is None:
        with read_write(sampler), open_dict(sampler):
            sampler.seed = config.seed
    _searched[:] = [Path(config.hydra.sweep.dir)]
    trials.begin(_searched[0], names, directions)


def _directions(given: Any) -> list[str]:
    """``minimize`` or ``maximize`` of each objective; Optuna's sweeper takes one, or a list."""
    listed = list(given) if OmegaConf.is_list(given) else [given]
    return [str(getattr(one, "name", None) or one or "minimize") for one in listed]


def show_last() -> None:
    """Show the trials of a search that ended early."""
    if _searched:
        show_trials(_searched.pop())


def ended_without_value(error: Exception) -> str | None:
    """That no trial of this process's search ended well, in words; None where something else happened."""
    if not _searched or "No trials are completed" not in str(error):
        return None
    return (
        "no trial of this search ended well, so there is no best one\n"
        f"experiment=collect runs={shown(_searched[0])} shows why each failed; the same command tries them again."
    )


def show_trials(sweep_dir: Path, output_dir: Path | None = None) -> bool:
    """Print the trials of a search and write ``trials.json``, ``.md`` and ``.tex``; nothing where it is no search.

    Args:
        output_dir: where the files go; the search's own directory if None.

    Returns:
        Whether it is one.
    """
    from vlmbench.cluster.trials import trials
    from vlmbench.records.files import write_json, write_whole
    from vlmbench.report.paper_tables import markdown, tex
    from vlmbench.report.templating import environment
    from vlmbench.report.terminal_tables import Fitted, as_text

    _searched.clear()
    found = trials(sweep_dir)
    if found is None:
        return False
    made, directions = found
    if not made:
        return True
    target = output_dir or sweep_dir
    rows = [{**asdict(one), "directory": one.directory.name} for one in made]
    path = write_json(target / f"{STEM}.json", {"schema_version": 1, "directions": directions, "trials": rows})
    whole = grid(made, directions)
    write_whole(target / f"{STEM}.md", markdown(whole))
    template = environment().get_template("table.tex.j2")
    write_whole(target / f"{STEM}.tex", template.render(grid=whole, tex=tex, stem=STEM))
    show(as_text(Fitted(grid(made[:_SHOWN], directions), elsewhere=f"{path.name} has them.")))
    say(f"{len(made)} trials are in {shown(path)}" + (f", {_SHOWN} of them here" if len(made) > _SHOWN else ""))
    return True


def grid(made: list[Trial], directions: list[str]) -> Grid:
    """The trials in the order begun: what was set, what it is worth with its interval, and how it stands."""
    from vlmbench.report.table_cells import Grid

    names = next(([o.name for o in one.objectives] for one in made if one.objectives), [])
    rows = []
    for number, one in enumerate(made):
        cells = [_cell(o.value, o.low, o.high) for o in one.objectives] or [DASH] * len(names)
        parameters = ", ".join(f"{key}={value}" for key, value in one.parameters.items()) or one.directory.name
        ended = one.standing or ": ".join(filter(None, (str(one.state), one.reason)))
        rows.append((str(number), parameters, *cells, ended))
    columns = [("trial", False), ("set", False)]
    columns += [(f"{name} ({how})", True) for name, how in zip(names, directions, strict=False)]
    title = "Trials [95 % interval]; settings that all share are left out"
    return Grid(name=STEM, title=title, columns=(*columns, ("", False)), rows=tuple(rows))


def _cell(value: float, low: float | None, high: float | None) -> str:
    inside = span(low, high, "").strip()
    return f"{digits(value)} [{inside}]" if inside else digits(value)
