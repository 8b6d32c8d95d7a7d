"""Hide secrets in texts and values: by their look, by the name beside them, or since the environment holds them.

Standard library only, so that whatever writes may use it. Every expression is linear in the text: what repeats without
a bound stands at its end, or ends at a character that no other attempt can begin before.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from vlmbench.hiding.forms import BEHIND, FORM, LONG_WORD
from vlmbench.hiding.names import ANY, TEXT, holds_secret, is_number, is_secret_name, kind_of

HIDDEN = "***"
_SHORTEST = 6  # characters of an environment variable that are taken for a secret wherever they stand
_SHORTEST_LINE = 12  # of one line of a value that has several

# ``NAME=value``, ``name: value``, ``?name=value``, ``"name": "value"``, ``--name value``: judged by the name.
_NAMED = re.compile(
    r"""(?<![\w.-])(?:(?<=%)[0-9A-Fa-f]{2})?(?P<name>[\w.-]{2,80})
        \\{0,9}['"]?\]?[ \t]{0,3}(?P<sign>=>|[:=]|%3[DdAa])[ \t]{0,3}
        (?P<quote>(?:[rb]{1,2}(?=\\{0,9}['"]))?\\{0,9}['"])?""",
    re.VERBOSE,
)
_OPTION = re.compile(r"""(?:(?<!\w)|(?<=\\[nrt]))--(?P<name>[\w-]{2,40})(?P<sign>[ ]{1,3})(?P<quote>['"])?""")
_LONGEST = 1024
_VALUE = re.compile(r"""[^\s'"`&,;}{\]\[<>*\\]{3,}""")
_IN_QUOTES = {"'": re.compile(r"[^'\n]{3,}"), '"': re.compile(r'[^"\n]{3,}')}
_HEADER = re.compile(r"""[^\n'"]{3,}""")
_HEADERS = ("cookie", "authorization")
_NOTHING = frozenset(("null", "none", "true", "false"))
# A sentence goes on, no value stands there: behind the name of a password only with one of these words.
_PROSE = re.compile(r"[a-z]{1,24}[,.]?[ ][a-z]")
_PROSE_WORD = re.compile(
    r"(?:must|should|is|are|was|were|not|no|missing|invalid|expected|wrong|required|cannot|could|may|an?|the|it|this|that|"
    r"expired|in|of|for|from|unknown|unset)\b(?![=&])"
)
_REFERENCE = re.compile(r"\$(?:\{oc\.env:[A-Za-z_]\w{0,99}(?:,null)?\}|\{[A-Za-z_]\w{0,99}\}|[A-Za-z_]\w{0,99})")
_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:([A-Za-z_]\w{0,99})\}")
_BESIDE_REFERENCES = re.compile(r"(?i:bearer |basic |token )?[:/@_.-]{0,8}")


def hide_secrets(text: str) -> str:
    """Return a text with secrets hidden."""
    return hider()(text)


def hider() -> Callable[[str], str]:
    """Return :func:`hide_secrets` for many texts: the environment is looked at once."""
    return partial(_hide, held=_held())


def _hide(text: str, held: Sequence[str]) -> str:
    for value in held:
        if value in text:
            text = text.replace(value, HIDDEN)
    for sign, form in BEHIND:
        if sign in text:
            text = form.sub(HIDDEN, text)
    text = LONG_WORD.sub(_without_forms, text)
    if ":" in text or "=" in text or "%3" in text:
        text = "".join(_without_named(text, _NAMED))
    return "".join(_without_named(text, _OPTION)) if "--" in text else text


def _without_forms(word: re.Match[str]) -> str:
    return FORM.sub(HIDDEN, word[0])


def without_secrets(value: Any, name: str = "", *, text: Callable[[str], str] | None = None) -> Any:
    """Return a value with secrets hidden, mappings and lists gone through; all else stays, paths become texts.

    Args:
        value: plain.
        name: what it is called.
        text: makes a text out of one that is no secret by its name; None for :func:`hide_secrets`.
    """
    text = text or hider()
    kind = kind_of(name)
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, str):
        if is_reference(value):
            return value
        return HIDDEN if value and holds_secret(kind, value) else text(value)
    if kind in (ANY, TEXT) and isinstance(value, Mapping | list | tuple) and value:
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: without_secrets(item, str(key), text=text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, text=text) for item in value]
    return value


def without_secret_texts(value: Any, text: Callable[[str], str] | None = None) -> Any:
    """Return a JSON value with its texts gone through; keys decide nothing (``per_token`` may hold a table)."""
    text = text or hider()
    if isinstance(value, dict):
        return {key: without_secret_texts(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secret_texts(item, text) for item in value]
    return text(value) if isinstance(value, str) else value


def hidden_name(name: str) -> str:
    """Return a name without its secrets; a short hash in their place keeps different names different."""
    hidden = hide_secrets(name)
    return name if hidden == name else f"{hidden}#{sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def is_reference(text: str) -> bool:
    """Whether a text only names variables: ``${oc.env:NAME}``, ``$NAME``, ``Bearer ${oc.env:NAME}``."""
    rest, found = _REFERENCE.subn("", text)
    return found > 0 and _BESIDE_REFERENCES.fullmatch(rest) is not None


def is_secret(name: str, value: str) -> bool:
    """Whether a variable holds a secret, by its name or by the look of its value."""
    return bool(without_secrets({name: value}, text=partial(_hide, held=())) != {name: value})


def with_environment(value: Any, *, name: str, secrets: bool) -> Any:
    """Put what variables hold into a value's texts, in place of ``${oc.env:NAME}``; one that is not set stays named.

    Args:
        value: plain.
        name: of its key; a secret's key has a secret.
        secrets: put in secrets, too.
    """
    if isinstance(value, list | tuple):
        return [with_environment(item, name=name, secrets=secrets) for item in value]
    if not isinstance(value, str) or "${oc.env:" not in value or (is_secret_name(name) and not secrets):
        return value

    def held(reference: re.Match[str]) -> str:
        variable = os.environ.get(reference[1])
        return reference[0] if variable is None or (not secrets and is_secret(reference[1], variable)) else variable

    return _FROM_ENVIRONMENT.sub(held, value)


def also_secret(value: str) -> None:
    """Hide this value from now on: a configuration took it from the environment."""
    if len(value) >= _SHORTEST and not _is_path(value):
        _also.add(value)


_also: set[str] = set()


def _without_named(text: str, named: re.Pattern[str]) -> Iterator[str]:
    """The text in pieces, what stands behind a secret's name hidden."""
    kept = 0
    for said in named.finditer(text):
        name = said["name"]
        if said.end() < kept:
            continue
        if not (kind := kind_of(name)) and text[said.start("name") - 1 : said.start("name")] == "\\":
            kind = kind_of(name := name[1:])  # a line break that is written as one
        if not kind:
            continue
        is_header = name.lower().endswith(_HEADERS)
        start, end = said.end(), _end_of_value(text, said, kind, is_header=is_header)
        value = text[start:end]
        if end == start or value.lower() in _NOTHING or is_reference(value):
            continue
        if holds_secret(kind, value):
            yield text[kept:start] + HIDDEN
            kept = end
    yield text[kept:]


def _end_of_value(text: str, said: re.Match[str], kind: str, *, is_header: bool) -> int:
    start, quoted = said.end(), said["quote"]
    colon = said["sign"] == ":"
    prose = _PROSE_WORD if kind == ANY else _PROSE
    if text.startswith(HIDDEN, start) or (colon and text[start - 1] == " " and prose.match(text, start)):
        return start
    value = _IN_QUOTES[quoted[-1]] if quoted else _VALUE
    if colon and not quoted and is_header:
        value = _HEADER
    # What is not hidden is looked at again at the next name in it, so it must not be long.
    found = value.match(text, start, len(text) if kind == ANY else start + _LONGEST)
    return start if found is None else start + len(found[0].rstrip("\\"))


def _held() -> list[str]:
    """Values that are secrets wherever they stand, in all forms in which they may be written, the longest first."""
    named = (v for name, v in os.environ.items() if len(v) >= _SHORTEST and is_secret_name(name))
    return _written(frozenset(v for v in (*named, *_also) if not is_number(v) and not _is_path(v)))


@lru_cache(maxsize=64)
def _written(values: frozenset[str]) -> list[str]:
    forms: set[str] = set()
    for value in values:
        escaped = json.dumps(value)[1:-1]
        forms |= {value, escaped, json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
        forms |= {quote(value, safe=""), quote(value), quote_plus(value), value.replace("'", "'\"'\"'")}
        forms |= {base64.b64encode(value.encode(errors="replace")).decode().rstrip("=")}
        forms |= {line.strip() for line in value.splitlines() if len(line.strip()) >= _SHORTEST_LINE}
    return sorted(forms, key=lambda form: (-len(form), form))


@lru_cache(maxsize=256)
def _is_path(value: str) -> bool:
    try:
        return len(value) < 4096 and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
