"""What is stored may be published: no home folders, no user names in paths, no tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

# Words of a name: one of these anywhere makes it a secret's …
_ALWAYS = frozenset(
    (
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "credential",
        "credentials",
        "authorization",
        "cookie",
        "bearer",
    )
)
# … and these at its end, unless what stands before says which token of a vocabulary, or which key, is meant.
_LAST = frozenset(("token", "apikey", "authtoken", "accesskey", "secretkey", "pat", "pass"))
_NO_SECRET_TOKENS = frozenset(
    (
        "image",
        "video",
        "vision",
        "audio",
        "img",
        "im",
        "pad",
        "eos",
        "bos",
        "unk",
        "sep",
        "cls",
        "mask",
        "boi",
        "eoi",
        "special",
        "newline",
        "patch",
        "placeholder",
        "start",
        "end",
        "stop",
        "text",
        "new",
        "row",
        "col",
        "tile",
        "fake",
        "global",
        "latent",
    )
)
_KEYS = frozenset(
    (
        "api",
        "access",
        "secret",
        "private",
        "auth",
        "signing",
        "encryption",
        "ssh",
        "account",
        "shared",
        "master",
        "license",
        "wandb",
        "hf",
    )
)
_WORD = re.compile(r"[a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# What providers' secrets look like; each is a prefix and one run of one class of characters: linear in the text.
_SECRET_VALUE = re.compile(
    r"""\b(?:hf|api_org|npm|r8|gsk)_[A-Za-z0-9]{16,} | \bgh[pousr]_[A-Za-z0-9]{16,} | \bgithub_pat_[A-Za-z0-9_]{16,}
      | \b(?:glpat|nvapi|pypi|xai)-[A-Za-z0-9_-]{16,} | \bdckr_pat_[A-Za-z0-9_-]{16,} | \bxox[abeoprs]-[A-Za-z0-9-]{10,}
      | \b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,} | \bAIza[A-Za-z0-9_-]{30,} | \bya29\.[A-Za-z0-9_-]{16,}
      | \bsk-[A-Za-z0-9_-]{16,} | \b[srp]k_(?:live|test)_[A-Za-z0-9]{10,} | \bdop_v1_[a-f0-9]{32,}
      | \bSG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,} | \btgp_v1_[A-Za-z0-9_-]{16,}
      | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?
      | (?<=AccountKey=)[A-Za-z0-9+/=]{20,} | (?<=\bBearer\ )[A-Za-z0-9+/._=-]{8,} | (?<=\bBasic\ )[A-Za-z0-9+/._=-]{8,}
      | (?<=://)[^\s/@'"]{1,256}(?=@)
      | -----BEGIN\ [A-Z\ ]{0,30}PRIVATE\ KEY-----[^-]{0,20000}(?:-----END\ [A-Z\ ]{0,30}PRIVATE\ KEY-----)?
    """,
    re.VERBOSE,
)
# ``NAME=value``, ``name: value``, ``?name=value``: judged by the name.
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]{2,80})['"]?[ \t]{0,3}[:=][ \t]{0,3}['"]?""")
_VALUE = re.compile(r"""[^\s'"&,;}{\]\[<>*]{3,}""")
_SHORTEST = 6  # characters of an environment variable that are taken for a secret wherever they stand
HIDDEN = "***"

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
    (``…/val2014#1a2b3c4d``), so that two different paths stay different; a home folder, whose last part is a user's
    name, keeps the hash only. In a running text a path is what begins with ``/`` and has two parts or more, begins
    with ``~/`` or ``~name/``, or stands in quotes: ``</s>``, ``[/INST]``, ``3/4``, ``a/b`` and web addresses stay.
    """
    return _gone_through(value, name, _text)


def without_secrets(value: Any, name: str = "") -> Any:
    """``value`` with secrets hidden and everything else, paths too, as it stands: for files that are run again."""
    return _gone_through(value, name, hide_secrets)


def _gone_through(value: Any, name: str, text: Callable[[str], str]) -> Any:
    if is_secret_name(name) and value not in (None, "", False, True) and not isinstance(value, int | float):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: _gone_through(item, str(key), text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_gone_through(item, "", text) for item in value]
    if isinstance(value, Path) and text is _text:
        return _short(str(value)) if value.is_absolute() else str(value)
    return text(value) if isinstance(value, str) else value


def is_secret_name(name: str) -> bool:
    """Tell whether a name, as of a key or a variable, is that of a secret: ``MY_TOKEN``, ``api_key``, ``x.password``.

    An ``image_token`` and ``max_new_tokens`` are none.
    """
    words = _WORD.findall(_CAMEL.sub("_", name).lower())
    if not words:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "key":
        return before in _KEYS
    if any("passw" in word or "secret" in word for word in words):
        return True
    return bool(_ALWAYS & set(words)) or (words[-1] in _LAST and before not in _NO_SECRET_TOKENS)


def hide_secrets(text: str) -> str:
    """A text with secrets hidden: by their look, by the name beside them, or since a variable named so holds them."""
    text = _SECRET_VALUE.sub(HIDDEN, text)
    text = "".join(_without_named(text))
    for value in _held():
        text = text.replace(value, HIDDEN)
    return text


def _without_named(text: str) -> Iterator[str]:
    """The text in pieces, what stands behind a secret's name hidden."""
    kept = 0
    for said in _NAMED.finditer(text):
        value = _VALUE.match(text, said.end()) if said.start() >= kept and is_secret_name(said[1]) else None
        if value is not None:
            yield text[kept : value.start()] + HIDDEN
            kept = value.end()
    yield text[kept:]


def also_secret(value: str) -> None:
    """Hide this value from now on: a configuration took it from the environment."""
    if len(value) >= _SHORTEST and not Path(value).expanduser().exists():
        _also.add(value)


_also: set[str] = set()


def _held() -> list[str]:
    """Values that are secrets wherever they stand, the longest first."""
    named = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and is_secret_name(name)}
    return sorted({v for v in named | _also if not v.isdigit()}, key=len, reverse=True)


def shareable_command(arguments: list[str]) -> list[str]:
    """A command line fit for publication: ``key=value`` arguments are judged by their key."""
    done = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        done.append(_text(f"{key}={shareable(value, key)}") if equals else _text(argument))
    return done


def _text(text: str) -> str:
    text = hide_secrets(text)
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
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        path = Path(text)
    digest = sha256(str(path).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    own = path.parent in _HOMES or path.name.startswith("~")
    return f"…/#{digest}" if own else f"…/{path.name}#{digest}"
