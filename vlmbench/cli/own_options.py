"""What is understood before Hydra reads the command line: ``-q``, ``-v``, ``--version``, and words that set nothing.

Hydra's parser would answer a slip with its own usage text; here it is answered with what was probably meant.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

from vlmbench import __version__
from vlmbench.errors import ConfigError
from vlmbench.machine.installation import conf_dir
from vlmbench.text import LEVEL_VARIABLE, Level, level

_LEVELS = {"-q": Level.QUIET, "--quiet": Level.QUIET, "-v": Level.VERBOSE, "--verbose": Level.VERBOSE}
_DETAILS = ("hydra.verbose=vlmbench",)  # what this project logs for finding a fault
_COMPLETION = ("-sc", "--shell-completion")


def taken(arguments: Sequence[str]) -> list[str]:
    """The arguments without our own options, which are obeyed; ``--version`` ends the process.

    Raises:
        ConfigError: ``-q`` and ``-v`` together, or completion of a command that no shell can complete.
    """
    if "--" in arguments:
        return list(arguments)
    if "--version" in arguments:
        sys.stdout.write(f"vlmbench {__version__}\n")
        sys.exit(0)
    if set(_COMPLETION) & set(arguments):
        if sys.argv[0].endswith(".py"):
            raise ConfigError(
                "completion is of the command vlmbench: no shell completes 'python -m vlmbench'\n"
                'write eval "$(vlmbench -sc install=bash)" into your shell\'s start file (fish, zsh: install=fish, zsh)'
            )
        return list(arguments)
    asked = {_LEVELS[word] for word in arguments if word in _LEVELS}
    if len(asked) > 1:
        raise ConfigError("-q and -v say the opposite; give one of them, or neither")
    if asked:
        os.environ[LEVEL_VARIABLE] = str(int(asked.pop()))
    words = [word for word in arguments if word not in _LEVELS]
    return [*words, *_DETAILS] if level() == Level.VERBOSE else words


def check_option(word: str, following: Sequence[str]) -> None:
    """Refuse an option that there is not: ``--model tiny`` means ``model=tiny``.

    Args:
        word: begins with ``-``.

    Raises:
        ConfigError: with what was probably meant.
    """
    known = _known_options()
    name, _, value = word.partition("=")
    if not known or name in known or (name.startswith("--") and any(one.startswith(name) for one in known)):
        return
    key = name.lstrip("-").replace("-", "_")
    value = value or (following[0] if following and not following[0].startswith("-") else "VALUE")
    near = difflib.get_close_matches(name, [one for one in known if one.startswith("--")], n=1)
    if len(key) > 1 and (not near or _is_group(key)):
        meant = f"settings have no dashes: {key}={value}"
    else:
        meant = f"did you mean {near[0]}?" if near else "--help shows what there is"
    raise ConfigError(f"'{word}' is no option; {meant}")


def check_setting(word: str, before: str | None) -> None:
    """Refuse a word that sets nothing: a choice without its group, or the second half of a value with a blank.

    Args:
        word: a setting as it was written.
        before: the setting in front of it, if any.

    Raises:
        ConfigError: with what was probably meant.
    """
    if "=" in word or word.startswith("~"):
        return
    groups = [path.parent.name for path in sorted(conf_dir().glob(f"*/{word}.yaml"))] if word.isidentifier() else []
    if groups:
        meant = f"did you mean {' or '.join(f'{group}={word}' for group in groups)}?"
    elif _is_group(word):
        meant = f"{word}=CHOICE chooses one of: {', '.join(choices(word))}"
    elif before is not None and "=" in before:
        key, _, value = before.partition("=")
        meant = f"a value with a blank needs two pairs of quotes: \"{key}='{value} {word}'\""
    else:
        meant = "--help shows groups, choices and examples"
    raise ConfigError(f"'{word}' is no setting, which is KEY=VALUE or GROUP=CHOICE; {meant}")


def choices(group: str) -> list[str]:
    """The choices of a group, by name."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _is_group(name: str) -> bool:
    return name.isidentifier() and (conf_dir() / name).is_dir()


def _known_options() -> list[str]:
    """Every option of Hydra's parser; none where this Hydra keeps it elsewhere: it then answers for itself."""
    try:
        from hydra._internal.utils import get_args_parser
    except ImportError:
        return []
    return list(get_args_parser()._option_string_actions)
