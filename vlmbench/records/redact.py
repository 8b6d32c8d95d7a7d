"""What is stored may be published: no home folders, no user names in paths, no tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

_SECRET_NAME = re.compile(  # an ``image_token`` is no secret
    r"(^|[.])(((hub|hf|(use_)?auth|access|api|secret)_)?token|(api|secret|access)_?key|passw(or)?d|secret|credentials?)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,})")
_PATH_IN_TEXT = re.compile(r"((?<![\w:/.~…])/|~[\w.-]*/)[^\s'\",;()\[\]{}=]+")
HIDDEN = "***"


def shareable(value: Any, name: str = "") -> Any:
    """``value`` with absolute paths shortened and secrets hidden, mappings and lists gone through.

    A path below the working directory becomes relative; any other keeps its last part and a short hash of the whole
    (``…/val2014#1a2b3c4d``), so that two different paths stay different.
    """
    if _SECRET_NAME.search(name) and value not in (None, "", False, True):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: shareable(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    if isinstance(value, Path):
        return _short(str(value)) if value.is_absolute() else str(value)
    return _text(value) if isinstance(value, str) else value


def shareable_command(arguments: list[str]) -> list[str]:
    """A command line fit for publication: ``key=value`` arguments are judged by their key."""
    done = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        done.append(f"{key}={shareable(value, key)}" if equals else _text(argument))
    return done


def _text(text: str) -> str:
    text = _SECRET_VALUE.sub(HIDDEN, text)
    if text.startswith(("/", "~")) and len(text) > 1 and "\n" not in text and "," not in text:
        return _short(text)  # a path as a whole; it may hold spaces
    return _PATH_IN_TEXT.sub(lambda match: _short(match.group()), text)


def _short(text: str) -> str:
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if path == Path("/"):
        return text
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return f"…/{path.name}#{sha256(str(path).encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"
