"""Secrets at the command line: out of what is printed and logged, as written in what is kept, refused in grids."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from vlmbench.errors import ConfigError
from vlmbench.hiding import also_secret, hide_secrets, is_reference, is_secret, without_secrets
from vlmbench.text import say

_SHOWN = 5
_from_environment: dict[str, str] = {}


# Out of what is printed and logged.


class _Hiding:
    """A text stream that hides secrets in what is written to it; all else is the stream's own.

    Words that cannot be written end no run, for its results are on disk: a character that the encoding does not have
    becomes ``?``; once the reader is gone (``| head``, a terminal that was closed) or the disk is full, the rest is
    lost.

    Args:
        stream: None where the caller closed it (``>&-``).

    Attributes:
        error: why words were lost, None where they were not or where nobody was there to read them.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = Path(os.devnull).open("w") if stream is None else stream  # noqa: SIM115 - until the process ends
        self.error: OSError | None = None
        if isinstance(self.stream, TextIOWrapper):
            self.stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        with self._losing():
            self.stream.write(hide_secrets(text))
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self.stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = None if error.errno in (errno.EPIPE, errno.EIO) else error
            with Path(os.devnull).open("w") as nowhere, suppress(OSError):  # Python, and libraries, write there again
                os.dup2(nowhere.fileno(), self.stream.fileno())

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_standard_streams() -> None:
    """Open what the caller closed (``>&-``), or the next file would get its number and all that libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def flushed() -> bool:
    """Write out what was printed; whether all of it was, and the user is told if not."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if error is not None:
        say(f"the rest of the output is lost: {error.strerror or error}")
    return error is None


def keep_out_of_output() -> None:
    """Hide secrets in all that this process prints or logs from now on, tracebacks too."""
    if not isinstance(sys.stdout, _Hiding):
        sys.stdout = cast(TextIO, _Hiding(sys.stdout))
    if not isinstance(sys.stderr, _Hiding):
        sys.stderr = cast(TextIO, _Hiding(sys.stderr))
    made = logging.getLogRecordFactory()
    if getattr(made, "hides_secrets", False):
        return

    def make(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = made(*arguments, **named)
        with suppress(Exception):  # a message that does not fit its arguments: logging says so itself
            record.msg, record.args = hide_secrets(record.getMessage()), None
        if record.exc_info and record.exc_info[1] is not None:  # formatters take this text where it is there
            record.exc_text = hide_secrets("".join(traceback.format_exception(record.exc_info[1])).rstrip())
        return record

    make.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)


# As written in what is kept: ``${oc.env:NAME}`` stays, so that no file holds what the variable holds.


def watch_environment() -> None:
    """Let ``${oc.env:NAME}`` note which variables a configuration takes its values from; they resolve as before."""
    OmegaConf.register_new_resolver("oc.env", _noted, replace=True)


def _noted(key: str, *default: Any) -> str | None:
    value = oc.env(key, *default)
    if key in os.environ and value:
        _from_environment[key] = value
        also_secret(value)
    return value


def as_written(config: DictConfig) -> dict[str, Any]:
    """Resolve a configuration into plain values, but leave texts that hold a variable's value as ``${oc.env:NAME}``.

    Raises:
        ConfigError: a variable that it names is not set.
    """
    written: Any = OmegaConf.to_container(config, resolve=False)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return cast(dict[str, Any], _unresolved(written, resolved))


def _unresolved(written: Any, resolved: Any) -> Any:
    if isinstance(resolved, dict):
        keys = written if isinstance(written, dict) else dict.fromkeys(resolved, written)
        return {key: _unresolved(keys[key], value) for key, value in resolved.items()}
    if isinstance(resolved, list):
        items = written if isinstance(written, list) else [written] * len(resolved)
        return [_unresolved(one, value) for one, value in zip(items, resolved, strict=True)]
    if not isinstance(resolved, str) or not isinstance(written, str) or "${" not in written:
        return resolved
    names = {value: name for name, value in _from_environment.items() if os.environ.get(name) == value}
    if not names:
        return resolved
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda m: f"${{oc.env:{names[m[0]]}}}", resolved)


# Refused in grids: Hydra and the launchers keep what they were told, and jobs have to be able to read it.


def refuse_in_grid(config: DictConfig) -> None:
    """Refuse a multirun whose configuration holds a secret in plain words.

    Raises:
        ConfigError: it names the keys, and says how a secret is given.
    """
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)  # what sbatch is told
    keys = [*_secret_keys(OmegaConf.to_container(config, resolve=False)), *_resolved_keys(launcher, "hydra.launcher")]
    found = list(dict.fromkeys(keys))
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"a secret stands in {', '.join(found[:_SHOWN])}{more}: a multirun would store it in its files\n"
            "put it into an environment variable, which jobs inherit, and name that: key='${oc.env:NAME}' "
            "(in a setup line: export OTHER=$NAME)"
        )


def _resolved_keys(value: Any, where: str) -> Iterator[str]:
    """Where a variable that holds a secret was put in by value."""
    if isinstance(value, dict | list):
        below = value.items() if isinstance(value, dict) else ((None, item) for item in value)
        for key, item in below:
            yield from _resolved_keys(item, where if key is None else f"{where}.{key}")
    elif isinstance(value, str) and any(v in value and is_secret(n, v) for n, v in _from_environment.items()):
        yield f"'{where}'"


def _secret_keys(value: Any, where: str = "", name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _secret_keys(item, f"{where}.{key}" if where else str(key), str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _secret_keys(item, where, name)
    elif isinstance(value, str) and not is_reference(value) and without_secrets(value, name) != value:
        yield f"'{where}'"
