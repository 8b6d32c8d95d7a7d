"""When the requests of an open loop are due. Standard library only."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from vlmbench.engines.endpoint.settings import Load
from vlmbench.errors import InputError


def due_times(load: Load, seed: str) -> Iterator[float]:
    """Arrival times, s from the start of the load; endless but for a trace.

    Args:
        load: of kind ``open``.
        seed: of Poisson arrivals.

    Raises:
        InputError: the trace file is missing or wrong.
    """
    if load.arrivals == "trace":
        assert load.trace_file is not None
        return iter(read_trace(Path(load.trace_file)))
    assert load.rate_per_s is not None
    return _poisson(load.rate_per_s, seed) if load.arrivals == "poisson" else _constant(load.rate_per_s)


_DAY_S = 86_400.0


def read_trace(path: Path) -> list[float]:
    """Arrival times from a text file: one number a line, s, ascending; lines beginning with ``#`` are skipped.

    Raises:
        InputError: it cannot be read, is empty, begins after more than a day, or a line is no number or smaller than
            the one before.
    """
    hint = "give one arrival a line, in seconds from the first, ascending"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'load.trace_file' cannot be read: {path}: {error}\n{hint}") from error
    times: list[float] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            value = float(text.replace("_", "no number"))  # Python reads 1_0 as 10
        except ValueError:
            raise InputError(f"line {number} of '{path}' is no number: {text[:40]!r}\n{hint}") from None
        if not 0 <= value < float("inf") or (times and value < times[-1]):
            raise InputError(f"line {number} of '{path}' must not be before the one above it (got {text})\n{hint}")
        times.append(value)
        if times[0] > _DAY_S:
            raise InputError(f"'{path}' begins at {text} s: a date, or another unit?\n{hint}")
    if not times:
        raise InputError(f"'{path}' holds no arrivals\n{hint}")
    return times


def _constant(rate: float) -> Iterator[float]:
    return (i / rate for i in itertools.count())


def _poisson(rate: float, seed: str) -> Iterator[float]:
    rng = random.Random(f"{seed}/arrivals")
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now
