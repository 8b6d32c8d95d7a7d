"""What is stored may be published: no home folders, no user names in paths, no tokens."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmbench.hiding import hide_secrets, hider, without_secrets

_HOME = r"~(?:[A-Za-z_][\w.-]*(?=/|$)|/)"  # ``~3/4`` is a number
_PART = r"[^\s/'\"`,;:()\[\]{}<>=|]+"
_WHOLE = re.compile(rf"(?:/[^/\s]|{_HOME})[^\n,]*")  # a path and nothing else; it may hold spaces
_FOUND = re.compile(
    rf"""
      (?P<quote>['"`]) (?P<quoted> (?: /[^/\s'"`<>] | ~[\w.-]*/ ) [^'"`\n]* ) (?P=quote)
    | file://[^/\s…'"`<>]* (?P<local> /{_PART} (?:/{_PART})* /? )
    | (?P<url> \b [A-Za-z][A-Za-z0-9+.-]{{0,30}} :// [^\s'"`<>]* )
    | (?<![\w~.…)\]}}*%/]) (?P<path>
          // ? {_PART} (?: /+ {_PART} )+ /?                # of two parts or more: ``</s>`` and ``[/INST]`` have one
        | ~ (?:[A-Za-z_][\w.-]*)? / (?:{_PART})? (?: /+ {_PART} )* /?
      )
    """,
    re.VERBOSE,
)
_OF_THE_SENTENCE = ".!?…"  # what follows a path at the end of a sentence is not its name
_HOMES = frozenset({Path("/home"), Path("/Users")})


def shareable(value: Any, name: str = "") -> Any:
    """``value`` with absolute paths shortened and secrets hidden, mappings and lists gone through.

    A path below the working directory becomes relative; any other keeps its last part and a short hash of the whole
    (``…/val2014#1a2b3c4d``), so that two different paths stay different; a home folder, or one that is called as its
    user, keeps the hash only. In a running text a path is what begins with ``/`` and has two parts or more, begins
    with ``~/`` or ``~name/``, or stands in quotes: ``</s>``, ``[/INST]``, ``3/4``, ``a/b`` and web addresses stay.
    """
    return without_secrets(value, name, text=partial(_text, hide=hider()))


def shareable_command(arguments: list[str]) -> list[str]:
    """A command line fit for publication: ``key=value`` arguments are judged by their key."""
    done = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        done.append(_text(f"{key}={shareable(value, key)}") if equals else _text(argument))
    return done


def _text(text: str, hide: Callable[[str], str] = hide_secrets) -> str:
    text = hide(text)
    if _WHOLE.fullmatch(text):
        return _short(text)
    return _FOUND.sub(_hidden, text)


def _hidden(match: re.Match[str]) -> str:
    if match["url"] is not None:
        return match["url"]
    if match["quoted"] is not None:
        return f"{match['quote']}{_short(match['quoted'])}{match['quote']}"
    if match["local"] is not None:
        return f"file://{_short(match['local'])}"
    path = match["path"].rstrip(_OF_THE_SENTENCE)
    return _short(path) + match["path"][len(path) :]


def _short(text: str) -> str:
    try:
        path = Path(text).expanduser() if text.startswith("~/") else Path(text)
        if path == Path("/"):
            return text
        below = path.relative_to(Path.cwd())
        if _user() not in below.parts:
            return str(below)
    except (ValueError, OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        path = Path(text)
    digest = sha256(str(path).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    own = path.parent in _HOMES or path.name.startswith("~") or path.name == _user() or path == _home()
    return f"…/#{digest}" if own else f"…/{path.name}#{digest}"


@lru_cache(maxsize=1)
def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, as in a container
        return None


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None
