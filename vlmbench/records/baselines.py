"""Baselines by name: what a later comparison needs of runs, kept in a folder of its own.

``<folder>/<name>/<run>/`` holds ``records.jsonl.gz`` (measured runs: their times and counts, their turns, and how fast
the machine was beside them) and ``provenance.json`` (machine, model, software, settings, which turns the sessions took;
no host name, no command, no paths).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmbench.errors import ConfigError, InputError, MeasurementError
from vlmbench.records.comparable import turns_taken, with_mixture_named
from vlmbench.records.files import NO_LINK, read_json, write_json, write_whole
from vlmbench.records.provenance import IGNORED, PROVENANCE_NAME
from vlmbench.records.reading import GZIP, IDENTITY, NUMBERS, RECORDS_NAME, iter_rows
from vlmbench.records.redact import shareable
from vlmbench.schema import Mode, Status
from vlmbench.text import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MARK = "baseline.json"
_OF_THE_MACHINE = ("turn", "yardstick_ms", "thread_waited_ms")  # how a comparison tells its drift from the code
_KEPT = (*IDENTITY, "schema_version", "started_unix_s", "intervention", "batch_size", *_OF_THE_MACHINE)
_FACTS = ("schema_version", "model", "device", "runtime", "load", "software", "dataset", "unlike")
_HOST = ("cpu", "cores_usable", "memory_bytes")


def check_name(name: str) -> None:
    """Refuse a name that no folder can have everywhere.

    Raises:
        ConfigError: with the rule.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'save_baseline' must be a name of letters, digits, '.', '_' and '-', 64 at most (got {name!r})\n"
            "as in save_baseline=main"
        )


def find(given: str, folder: Path) -> Path:
    """Where a baseline lies: a directory (or phase file) as it is, else a saved baseline of this name.

    Raises:
        ConfigError: it could be either.
        InputError: it is neither; the message lists what is saved.
    """
    place = Path(given).expanduser()
    saved = folder / given
    is_saved = bool(_NAME.fullmatch(given)) and (saved / _MARK).is_file()
    if is_saved and place.exists() and place.resolve() != saved.resolve():
        raise ConfigError(
            f"'baseline' is both a directory here and a saved baseline (got {given})\n"
            f"write baseline=./{given} for the directory, or baseline={shown(saved)}"
        )
    if is_saved or place.exists():
        return saved if is_saved else place
    there = sorted(p.parent.name for p in folder.glob(f"*/{_MARK}")) if folder.is_dir() else []
    listed = f"saved in {shown(folder)}: {', '.join(there)}" if there else f"none is saved in {shown(folder)}"
    raise InputError(
        f"no directory and no saved baseline '{given}' ({listed})\n"
        "give a run directory, or save one: experiment=compare candidate=DIR save_baseline=NAME"
    )


def save(name: str, runs: Sequence[Path], top: Path, folder: Path) -> Path:
    """Keep what a comparison needs of runs; a baseline of that name is replaced.

    Args:
        runs: run directories at or below ``top``.
        folder: where baselines are kept.

    Returns:
        Its directory.

    Raises:
        ConfigError: no such name can be.
        InputError: a run cannot be read, or is a phase file; or a link stands in the place.
        MeasurementError: it cannot be written.
    """
    check_name(name)
    target = folder / name
    if target.is_symlink():
        raise InputError(f"'{shown(target)}' {NO_LINK}")
    if target.exists() and not (target / _MARK).is_file():
        raise InputError(f"'{shown(target)}' is there and is no saved baseline\nchoose another name or baselines=DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}."))
        try:
            places = [place.relative_to(top) if place.is_relative_to(top) else Path(place.name) for place in runs]
            for run, place in zip(runs, places, strict=True):
                _copy(run, made / place)
            write_json(made / _MARK, {"schema_version": 1, "name": name, "runs": [str(place) for place in places]})
            made.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise MeasurementError(
            f"cannot save the baseline '{shown(target)}': {error.strerror or error}\n"
            "Free space or allow writing there, or name another place with baselines=DIR."
        ) from error
    return target


def _copy(run: Path, to: Path) -> None:
    if not run.is_dir():
        raise InputError(f"'{shown(run)}' is a phase file\na baseline is saved from the run directory itself")
    text = io.BytesIO()
    kept = 0
    with gzip.GzipFile(fileobj=text, mode="wb", mtime=0) as file:
        for row in iter_rows(run, itl=False):
            if row["status"] == Status.OK and row["mode"] == Mode.INSTRUMENTED:
                file.write(json.dumps(_row(row)).encode() + b"\n")
                kept += 1
    if not kept:
        raise InputError(f"'{shown(run)}' holds no measured run\na baseline needs runs whose status is ok")
    write_whole(to / f"{RECORDS_NAME}{GZIP}", text.getvalue())
    write_json(to / PROVENANCE_NAME, _provenance(run))


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if name in _KEPT or (name.startswith((*NUMBERS, "axis_")) and not isinstance(value, list | dict))
    }


def _provenance(run: Path) -> dict[str, Any]:
    whole = with_mixture_named(read_json(run / PROVENANCE_NAME) or {})
    kept = {name: whole[name] for name in _FACTS if name in whole}
    kept["host"] = {name: value for name, value in _mapping(whole.get("host")).items() if name in _HOST}
    kept["config"] = {name: value for name, value in _mapping(whole.get("config")).items() if name not in IGNORED}
    sessions = whole.get("sessions")
    kept["sessions"] = [_session(_mapping(one)) for one in sessions] if isinstance(sessions, list) else []
    done: dict[str, Any] = shareable(kept)
    return done


def _session(whole: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: whole[name] for name in ("session", "started_unix_s") if name in whole}
    if turns := turns_taken(whole):
        kept["turns"] = {"id": turns.get("id")}
    return {**kept, "code": {"vlmbench": _mapping(whole.get("code")).get("vlmbench")}}


def _mapping(value: Any) -> Mapping[str, Any]:
    """A part of a provenance; empty where it is something else (files may be damaged)."""
    return value if isinstance(value, Mapping) else {}
