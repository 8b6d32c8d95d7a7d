"""Errors of Hydra, OmegaConf and the file system in one or two lines: what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ValidationError

from vlmbench.cli.argument_order import AXES
from vlmbench.cli.own_options import choices
from vlmbench.cli.validate import unknown_key
from vlmbench.errors import InputError, first_line
from vlmbench.machine.installation import conf_dir
from vlmbench.sweep import KNOBS, NESTED

_NOISE = ("full_key:", "object_type=", "reference_type=", "See https://hydra.cc")
_OPTIONS = ("Only one of --run", "The --resolve flag")  # Hydra says these as plain ValueErrors
_VALUE = re.compile(
    r"Value (?P<given>.+) (?:of type '.+' could not be converted to|is not a valid) "
    r"(?P<kind>Integer|Float|Boolean|bool)"
)
_KINDS = {"Integer": "a whole number", "Float": "a number"}  # else true or false
ABSENT = re.compile(r"provider=(?P<who>.*), path=(?P<path>.*) is not available")
_FOLDERS = ("--config-dir", "-cd")
_READABLE = "give one that is there and that this user may read, or leave it out"
_LISTED = 8  # choices that one line holds
_LONGER = "; give a range as text: 'sweep.axes.NAME=\"log(start, stop, num)\"', without a + where the axis is there"


def compact(error: BaseException) -> str:
    """What Hydra or OmegaConf refused, in the words of this project where there are some."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, given = error.missing_cfg_file.rpartition("/")
        options = error.options if error.options is not None else choices(group)
        if (group, given) == ("hydra/sweeper", "optuna"):
            return "hydra/sweeper=optuna is not installed\nInstall it with pip install 'vlmbench-latency[search]'."
        if group and options:
            return _no_choice(group, given, options)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.parent_node is not None:
        return _no_key(cause)
    if words := _wrong_type(error):
        return words
    text = str(error).partition("Config search path")[0].strip()
    if cause is not None and str(cause).strip() and str(cause).strip() not in text:
        text = f"{text}: {str(cause).strip()}"
    text = "\n".join(line for line in text.splitlines() if not line.strip().startswith(_NOISE))
    return text + _LONGER if "sweep.axes." in text and "Cannot merge" in text else text


def of_search_path(warning: UserWarning) -> str:
    """A folder or package of the search path that is not there, of which Hydra only warns; other warnings as is."""
    found = ABSENT.match(str(warning))
    if found is None:
        return first_line(warning)
    return f"no folder or package '{found['path']}' of configurations, which '{found['who']}' names\n{_READABLE}"


def check_folders(words: Sequence[str]) -> None:
    """Refuse folders of configurations that the command line names and this user cannot read: Hydra passes over them.

    Raises:
        InputError: such a one.
    """
    given = [(word, place) for word, place in pairwise(words) if word in _FOLDERS]
    parts = [(key, place) for key, is_there, place in (word.partition("=") for word in words) if is_there]
    given += [(key, place) for key, place in parts if key in _FOLDERS]
    for key, value in parts:
        if key.lstrip("+") == "hydra.searchpath":
            places = (one.strip(" '\"") for one in value.strip("'\"[]").split(","))
            given += [
                (key, one.removeprefix("file://")) for one in places if one and "://" not in one.removeprefix("file://")
            ]
    for key, place in given:
        try:
            os.scandir(place).close()
        except OSError as error:
            raise InputError(f"'{key}': cannot read the folder '{place}': {error.strerror}\n{_READABLE}") from None


def of_yaml(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file: place and problem."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return f"a YAML file cannot be read: {first_line(error)}"
    hint = "; indent with blanks, a tab is none" if "'\\t'" in str(problem) else ""
    return f"{mark.name}:{mark.line + 1}:{mark.column + 1}: {problem or 'not YAML'}{hint}"


def _no_choice(group: str, given: str, options: Sequence[str]) -> str:
    """A choice that a group has not: the nearest three, and all where they are few."""
    near = difflib.get_close_matches(given, options, n=3)
    hint = f"did you mean {_or(near)}? " if near else ""
    few = len(options) <= _LISTED or not near
    listed = ", ".join(options) if few else f"--help lists all {len(options)}"
    return f"'{given}' must be one of the choices of {group}: {hint}{f'({listed})' if hint else listed}"


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _unreadable(override: str) -> str:
    """A setting whose value Hydra cannot read: what is not closed, or that it needs quotes."""
    key, _, value = override.partition("=")
    for opened, closed in ("[]", "{}", "()"):
        if value.count(opened) != value.count(closed):
            missing = closed if value.count(opened) > value.count(closed) else opened
            return f"cannot read '{override}': a '{missing}' is missing"
    if value.count("'") % 2 or value.count('"') % 2:
        return f"cannot read '{override}': a quote is not closed"
    return (
        f"cannot read '{override}': a value with a blank or one of (){{}}[]:'\",= needs two pairs of quotes, "
        f"\"{key}='{value}'\""
    )


def _wrong_type(error: BaseException) -> str | None:
    """A value of another type than its key has; None for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ValidationError) and (found := _VALUE.search(str(seen))):
            key = getattr(seen, "full_key", None) or "the value"
            return f"'{key}' must be {_KINDS.get(found['kind'], 'true or false')} (got {found['given']})"
        seen = seen.__cause__
    return None


def outside_a_run(error: BaseException) -> str:
    """What went wrong before a run or between two: the file system, the options, or something that Hydra sets up."""
    return _of_the_system(error) or (
        f"{type(error).__name__}: {first_line(error)}; it came from outside a run: Hydra's options, launcher or "
        "logging.\nLook at what the command line sets below 'hydra'; VLMBENCH_TRACEBACK=1 shows where it was raised."
    )


def _of_the_system(error: BaseException) -> str | None:
    if isinstance(error, ValueError) and str(error).startswith(_OPTIONS):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__  # a log that cannot be opened comes as a ValueError
    if cause is None or cause.filename is None:
        return None
    if isinstance(cause, FileExistsError | NotADirectoryError):
        return f"'{cause.filename}' is, or lies below, a file; output_dir must be a directory, or not exist yet."
    return (
        f"cannot write '{cause.filename}': {cause.strerror or cause}.\n"
        "Make its folder writable, or choose another directory with output_dir=DIR."
    )


def _no_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    """A key that does not exist: an axis, a key of another choice of the same group, or a slip."""
    parent, key = error.parent_node, str(error.key)
    assert parent is not None
    where = parent._get_full_key(None)
    allowed = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
    if where == "sweep.axes":
        return _no_axis(key, allowed)
    others = [] if "." in where else [name for name in choices(where) if where and _has(where, name, key)]
    if others:
        here = (
            f"'{where}.{key}' is not a key of the {where} that is chosen (allowed here: {', '.join(sorted(allowed))})"
        )
        return f"{here}\nit is one of {where}={', '.join(others)}"
    groups = parent.items_ex(resolve=False) if isinstance(parent, DictConfig) and not where else ()
    below = [f"{name!s}.{key}" for name, node in groups if isinstance(node, DictConfig) and key in node]
    return unknown_key(f"{where}." if where else "", key, allowed, below)


def _no_axis(axis: str, present: list[str]) -> str:
    has = f"this sweep has {', '.join(present) or 'no axis'}"
    if axis in KNOBS or axis in NESTED:
        return (
            f"{has}: add an axis with '+sweep.axes.{axis}=…', or replace all with 'sweep.axes={{{axis}:…}}'\n"
            'values are a list, [1,2,4], or a range in quotes, "log(64,2048,4)"'
        )
    return f"axis '{axis}' must be one of {AXES}; {has}, '+sweep.axes.NAME=…' adds one"


def _has(group: str, choice: str, key: str) -> bool:
    node = OmegaConf.load(Path(conf_dir()) / group / f"{choice}.yaml")
    return isinstance(node, DictConfig) and key in node
