"""The run directories of a multirun say what its jobs differ in: ``3_phase2_llava_1_5_7b_seed-1``.

A search (a sweeper that proposes settings, as Optuna's does) has no fixed list of jobs: there a directory is called by
what was set, so that the same settings are the same directory, whichever number they get when it is continued.

A directory of the same number that was begun before keeps its name, whatever it is, so that the same command continues
it, also one of an earlier version, which called it ``3_phase2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from vlmbench.cluster.grid import numbered_directories
from vlmbench.errors import ConfigError

_LONGEST, _LONGEST_PART = 100, 40
_SAID_ALREADY = {"experiment", "name", "output_dir"}  # by the name of the experiment, or by the path
_NOT_SET = {"output_dir", "progress", "break_lock", "detach", "objective"}  # that measure nothing else
_known: dict[int, list[str]] = {}
_differs: dict[int, str] = {}


def choose(sweep_dir: Path, jobs: Sequence[Sequence[str]], first_index: int) -> None:
    """Settle what the jobs of this process's multirun will be called.

    Args:
        sweep_dir: of the multirun, which need not exist.
        jobs: the overrides of each job.

    Raises:
        ConfigError: there are none, and nothing would be measured.
    """
    if not jobs:
        raise ConfigError(
            "this multirun has no job: a key=glob(…) of it matches nothing\n"
            "glob(…) chooses among the names of a group: 'model=glob(qwen*)'; list other values: seed=1,2"
        )
    _known.clear()
    _known.update(numbered_directories(sweep_dir, range(first_index, first_index + len(jobs))))
    _differs.clear()
    _differs.update(enumerate(differences(jobs), start=first_index))


def is_search(sweeper: str) -> bool:
    """Whether a sweeper proposes settings instead of going through a list of them."""
    return bool(sweeper) and not sweeper.endswith(".BasicSweeper")


def run_name(number: int, name: str, sweeper: str = "", overrides: str = "") -> str:
    """The directory of a job, below that of its sweep; of a job that was not chosen for, number and experiment only.

    Args:
        sweeper: class of Hydra's sweeper.
        overrides: what was set, joined by commas.
    """
    if is_search(sweeper):
        made = sorted(part for part in overrides.split(",") if part.partition("=")[0] not in _NOT_SET)
        return f"{in_a_path(name)}_{sha256(','.join(made).encode()).hexdigest()[:8]}"
    differs = _differs.get(int(number))
    new = f"{number}_{in_a_path(name)}" + (f"_{differs}" if differs else "")
    known = _known.get(int(number), [])
    return new if new in known or not known else known[-1]


def in_a_path(name: str) -> str:
    """The name of an experiment as a part of a directory's name: on one level, 100 bytes at most."""
    flat = name.replace("/", "-").replace("\0", "-")
    return flat.encode()[:_LONGEST].decode(errors="ignore")


def differences(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What each job has that not all have, in short: ``llava_1_5_7b_seed-1``; empty where nothing differs.

    Args:
        jobs: the overrides of each job, as on the command line.
    """
    split = [dict(_key_and_value(text) for text in job) for job in jobs]
    keys = dict.fromkeys(key for job in split for key in job)
    varying = [key for key in keys if len({job.get(key) for job in split}) > 1 and not _is_said(key)]
    return ["_".join(filter(None, (_part(job, key) for key in varying)))[:_LONGEST].rstrip("-_.") for job in split]


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key.startswith("~"):
        return key[1:], "without"
    return key.lstrip("+"), value if equals else ""


def _is_said(key: str) -> bool:
    return key in _SAID_ALREADY or key.startswith(("hydra.", "hydra/"))


def _part(job: Mapping[str, str], key: str) -> str:
    """One difference: a choice of a group by itself (``llava_1_5_7b``), a value behind its key (``seed-1``)."""
    value = job.get(key)
    if value is None:
        return ""
    last = key.partition("@")[0].rpartition(".")[2].rpartition("/")[2]
    if value == "without":
        return f"without-{last}"
    words = [re.sub(r"[^A-Za-z0-9_.+-]+", "-", one.rpartition("/")[2]).strip("-.") for one in re.split(r"[,:]", value)]
    short = "-".join(filter(None, words))[:_LONGEST_PART]
    is_choice = "." not in key and re.fullmatch(r"[A-Za-z]\w*", value) and value not in ("true", "false", "null")
    return short if is_choice else f"{last}-{short}"
