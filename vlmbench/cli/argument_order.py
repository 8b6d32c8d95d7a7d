"""The words of the command line, arranged as Hydra can take them: options behind settings, axes of a sweep replaced.

Hydra merges what the command line says into what the YAML says. A mapping cannot be merged into a list, and axes would
be added to those that are there; for a sweep both are meant to replace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from vlmbench.cli.own_options import check_option, check_setting
from vlmbench.errors import ConfigError
from vlmbench.sweep import KNOBS, NESTED, spaced

_WITH_VALUE = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
               "--experimental-rerun"}  # fmt: skip
_INFO, _INFOS = {"-i", "--info"}, {"all", "config", "defaults", "defaults-tree", "plugins", "searchpath"}
_AXIS = re.compile(r"(?P<key>(?:\+\+)?sweep\.axes\.(?P<axis>[^=]+))=(?P<value>.*)", re.DOTALL)
_OPEN = re.compile(r"runtime\.(engine_options|extra_body)[.=]")  # takes names that no YAML lists
_SHORT_RANGE = re.compile(r"(\+{0,2}sweep\.axes\.[^=]+)=((?:log|linear|range|auto)\([^()\"']*\))")
AXES = f"{', '.join(KNOBS)}, processor.NAME, intervention.NAME or load.NAME"
"""What an axis can be, in words."""


def arranged(arguments: Sequence[str]) -> list[str]:
    """The arguments with the same meaning in a form that Hydra takes.

    ``-m`` and other options may stand anywhere; ``sweep.axes={NAME:[…]}`` replaces the axes of the chosen sweep;
    ``sweep.axes.NAME={start:…,stop:…,num:…,spacing:log}`` and ``sweep.axes.NAME=log(…)`` may replace a list.

    Raises:
        ConfigError: a word is no setting and no option, or a range or the axes that were given make no points.
    """
    if "--" in arguments or {"-sc", "--shell-completion"} & set(arguments):
        return list(arguments)
    settings, options = _apart(arguments)
    for before, setting in zip([None, *settings], settings, strict=False):
        check_setting(setting, before)
    if not {"-m", "--multirun"} & set(options):
        settings = [_several_runs(setting) for setting in settings]
    return [*(word for setting in settings for word in _as_hydra_takes(setting)), *options]


def _several_runs(setting: str) -> str:
    """``runs=A,B`` and ``runs=[A,B]`` as one text: without ``-m`` they are directories to show together, no sweep."""
    key, _, value = setting.partition("=")
    if key != "runs" or "," not in value or value[:1] in ("'", '"'):
        return setting
    text = value.removeprefix("[").removesuffix("]").replace("\\", "\\\\").replace("'", "\\'")
    return f"runs='{text}'"


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings, and options with their values; argparse takes settings in one row only."""
    settings: list[str] = []
    options: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            settings.append(word)
            continue
        check_option(word, words)
        options.append(word)
        if words and (word in _WITH_VALUE or (word in _INFO and words[0] in _INFOS)):
            options.append(words.pop(0))
    return settings, options


def _as_hydra_takes(setting: str) -> Iterator[str]:
    if found := _SHORT_RANGE.fullmatch(setting):
        yield f'{found[1]}="{found[2]}"'
    elif setting.startswith("sweep.axes="):
        yield from _axes(setting)
    elif found := _AXIS.fullmatch(setting):
        if found["axis"].partition(".")[0] in NESTED and not setting.startswith("+"):
            setting = f"++{setting}"  # an axis of a group is not there before it is named
            found = _AXIS.fullmatch(setting)
            assert found is not None
        value = _value(setting)
        yield f'{found["key"]}="{_short(found["axis"], value)}"' if isinstance(value, Mapping) else setting
    else:
        yield f"++{setting}" if _OPEN.match(setting) else setting


def _axes(setting: str) -> Iterator[str]:
    """All axes at once: those that are there go first, for Hydra would add to them."""
    value = _value(setting)
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    if any(isinstance(choice, Mapping) and not choice for choice in choices):
        raise ConfigError(
            "'sweep.axes' is empty: a sweep without points; name an axis, as in 'sweep.axes={resolution:[112,224]}' "
            f"({AXES}),\nor choose the one point that the request itself is with sweep=none"
        )
    if all(isinstance(choice, Mapping) for choice in choices):
        yield "~sweep.axes"
        yield f"+{setting}"
    else:
        yield setting


def _value(setting: str) -> Any:
    """What Hydra reads in a setting; None where it cannot, which it will say itself."""
    try:
        return OverridesParser.create().parse_overrides([setting])[0].value()
    except HydraException:
        return None


def _short(axis: str, spec: Mapping[Any, Any]) -> str:
    """A range mapping in short: text can take the place of a list."""
    plain = {str(key): value for key, value in spec.items()}
    try:
        spaced(plain)
    except ValueError as error:
        raise ConfigError(f"axis '{axis}': {error}") from error
    if "step" in plain:
        return f"range({plain['start']}, {plain['stop']}, {plain['step']})"
    return f"{plain.get('spacing', 'linear')}({plain['start']}, {plain['stop']}, {plain['num']})"
