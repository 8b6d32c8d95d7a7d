"""What may be said about jobs; checked before anything reaches a shell or a scheduler."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vlmbench.errors import ConfigError

_WORD = re.compile(r"[\w.@:,=+/&|\[\]*!-]{1,256}")  # names of partitions, accounts, lists of nodes, constraints
_NAME = re.compile(r"[\w.@+-]{1,64}")
_OPTION = re.compile(r"[a-z][a-z0-9-]{1,40}")
_SETUP_COMMANDS = ("module", "ml", "source", ".", "export", "unset", "conda", "mamba", "ulimit", "umask", "spack")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
# Set by this project; a second word on them would contradict it.
_OWN_OPTIONS = {
    "array",
    "output",
    "error",
    "job-name",
    "signal",
    "requeue",
    "no-requeue",
    "wrap",
    "parsable",
    "open-mode",
}


def _check(name: str, value: object, pattern: re.Pattern[str], allowed: str) -> None:
    if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
        raise ValueError(f"'{name}' must be {allowed} (got {value!r})")


def _at_least(name: str, value: object, least: float) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= least):
        raise ValueError(f"'{name}' must be a number of {least:g} or more (got {value!r})")


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """What is asked of Slurm for each task. None leaves it to the cluster.

    Args:
        partition, account, qos, constraint, exclude, reservation: as sbatch takes them.
        gpus: GPUs of a task.
        gpu_type: of them (``a100``); None takes any.
        cpus: CPU cores of a task.
        memory_gb: of a task's node.
        time_min: limit of a task; minutes.
        grace_s: so long before the limit a task is told to finish its current repeat and save.
        requeues: how often a task that reached its limit goes back into the queue to continue.
        parallel: at most so many tasks of an array at once.
        setup: shell lines before the task: ``module load …``, ``source …``, ``export NAME=value`` and their like.
        comment: shown by Slurm.
        job_name: shown by Slurm, with a unique ending.
        extra: further sbatch options, name without dashes to value (``nice: 100``; true for one without value).
        detach: return once the tasks are queued.
        poll_s: how often a waiting parent looks.
        lost_after_s: a task that neither Slurm nor its files know for so long is lost.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    gpus: int | None = None
    gpu_type: str | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    time_min: int = 60
    grace_s: int = 120
    requeues: int = 3
    parallel: int = 256
    setup: tuple[str, ...] = ()
    comment: str | None = None
    job_name: str = "vlmbench"
    extra: Mapping[str, Any] = field(default_factory=dict)
    detach: bool = False
    poll_s: float = 5.0
    lost_after_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "exclude", "reservation"):
            _check(name, getattr(self, name), _WORD, "a word of letters, digits and .@:,=+/&|[]*!- ")
        _check("job_name", self.job_name, _NAME, "1 to 64 letters, digits, dots, dashes, underscores")
        _check("gpu_type", self.gpu_type, _NAME, "a word")
        if self.comment is not None and not (self.comment.isprintable() and len(self.comment) <= 256):
            raise ValueError(f"'comment' must be one line of at most 256 characters (got {self.comment!r})")
        for name, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 0.01), ("time_min", 1), ("grace_s", 0),
                            ("requeues", 0), ("parallel", 1), ("poll_s", 0.1), ("lost_after_s", 1)):  # fmt: skip
            _at_least(name, getattr(self, name), least)
        for name, value in self.extra.items():
            _check("extra", name, _OPTION, "options of sbatch, such as 'nice' or 'mail-type'")
            if name in _OWN_OPTIONS:
                raise ValueError(f"'extra' must not set '{name}': vlmbench sets it itself")
            if value is not True and not str(value).isprintable():
                raise ValueError(f"'extra.{name}' must be one line (got {value!r})")
        for line in self.setup:
            safe_line(line)


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """How tasks run on this machine, each in a process of its own.

    Args:
        parallel: at most so many at once; None: as many as there are GPUs, 1 without any.
        gpus_per_task: GPUs that a task has to itself; 0 leaves all GPUs visible to every task.
        detach: return at once; the tasks go on without this process.
        poll_s: how often is looked whether a task ended.
        stop_s: so long a task may take to finish its current repeat after an interrupt.
    """

    parallel: int | None = None
    gpus_per_task: int = 1
    detach: bool = False
    poll_s: float = 0.5
    stop_s: float = 120.0

    def __post_init__(self) -> None:
        for name, least in (("parallel", 1), ("gpus_per_task", 0), ("poll_s", 0.05), ("stop_s", 0)):
            _at_least(name, getattr(self, name), least)


def parse(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Settings (:class:`SlurmSettings`, :class:`LocalSettings`) from YAML's values.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
    """
    known = {f.name for f in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(
            f"hydra.launcher: {', '.join(map(repr, unknown))} not known (allowed: {', '.join(sorted(known))})"
        )
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"hydra.launcher: {error}") from error


def safe_line(line: str) -> str:
    """A setup line with every word quoted, so that it can run one command and nothing else; ``$NAME`` still expands.

    Raises:
        ValueError: another command than those for preparing an environment, or a line that is no list of words.
    """
    try:
        if not line.isprintable():
            raise ValueError("line break or control character")
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"'setup' line {line!r} cannot be read: {error}") from error
    if not words or words[0] not in _SETUP_COMMANDS:
        raise ValueError(f"a 'setup' line must begin with one of {', '.join(_SETUP_COMMANDS)} (got {line!r})")
    return " ".join([words[0], *map(_quote, words[1:])])


def _quote(word: str) -> str:
    """In double quotes, with nothing left for the shell to do but the expansion of plain variables."""
    done, end = [], 0
    for match in _VARIABLE.finditer(word):
        done += [_escape(word[end : match.start()]), match.group()]
        end = match.end()
    return '"' + "".join([*done, _escape(word[end:])]) + '"'


def _escape(text: str) -> str:
    return re.sub(r'([\\$`"])', r"\\\1", text)
