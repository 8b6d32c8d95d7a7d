"""Key trees of JSON documents, and what differs between two of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Section = dict[str, str]  # key → what it holds; "?" at the end: not always there
Sections = dict[str, Section]

# Mappings whose keys are data, not names: they differ by machine, by run or by model.
OPEN = re.compile(
    r"(^|\.)(software\.packages|software\.settings|state_before|state_after|code\.vlmbench\.git|code\.caller|slurm|"
    r"flags|flagged_by|tail\.causes|model\.config|model\.processor)$"
)
WANTING = "?"


def tree(documents: Sequence[Any]) -> Section:
    """Dotted keys of documents of one kind, with the types they hold.

    >>> tree([{"a": 1, "b": [{"c": "x"}, {}]}, {"a": 2.5, "b": []}])
    {'a': 'number', 'b[].c': 'text?'}
    """
    found: Section = {}
    _walk(list(documents), "", False, found)
    return found


def merged(sections: Sequence[Section]) -> Section:
    """What several runs have in common, and with a "?" what only some have."""
    found: Section = {}
    for key in dict.fromkeys(key for section in sections for key in section):
        values = [section[key] for section in sections if key in section]
        kinds = sorted({kind for value in values for kind in _kinds(value)})
        wanting = len(values) < len(sections) or any(value.endswith(WANTING) for value in values)
        found[key] = "|".join(kinds) + (WANTING if wanting else "")
    return found


def differences(golden: Section, now: Section) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, that are new, and that hold something else."""
    missing = [key for key, value in golden.items() if key not in now and not value.endswith(WANTING)]
    new = [key for key in now if key not in golden]
    other = [key for key in golden if key in now and not _fits(golden[key], now[key])]
    return missing, new, other


def matches(pattern: str, text: str) -> bool:
    """Whether a text fits a pattern in which ``*`` stands for anything and all else for itself."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def excused(entries: Iterable[Mapping[str, str]], section: str, key: str) -> bool:
    """Whether a list of exceptions names a key of a section."""
    return any(matches(entry["in"], section) and matches(entry["key"], key) for entry in entries)


def _walk(values: list[Any], path: str, wanting: bool, found: Section) -> None:
    mappings = [value for value in values if isinstance(value, Mapping) and value]
    lists = [value for value in values if isinstance(value, list) and value]
    kinds = {_kind(value) for value in values if not isinstance(value, Mapping | list)}
    kinds |= {name for name, full in (("mapping", mappings), ("list", lists)) if not full and _has(values, name)}
    end = WANTING if wanting else ""
    if OPEN.search(path):
        found[path] = "open" + end
        return
    if kinds:
        found[path] = "|".join(sorted(kinds)) + end
    for key in dict.fromkeys(str(key) for mapping in mappings for key in mapping):
        inner = [mapping[key] for mapping in mappings if key in mapping]
        _walk(inner, f"{path}.{key}" if path else key, wanting or len(inner) < len(values), found)
    if lists:
        _walk([item for one in lists for item in one], f"{path}[]", wanting or len(lists) < len(values), found)


def _has(values: list[Any], kind: str) -> bool:
    return any(_kind(value) == kind for value in values)


def _kind(value: Any) -> str:
    for kind, name in ((bool, "bool"), (int | float, "number"), (str, "text"), (list, "list"), (Mapping, "mapping")):
        if isinstance(value, kind):
            return name
    return "null"


def _kinds(value: str) -> set[str]:
    return set(value.removesuffix(WANTING).split("|"))


def _fits(golden: str, now: str) -> bool:
    """Whether both hold the same kinds of thing; null, and an empty list or mapping, fit everything."""
    old, new = (_kinds(text) - {"null", "list", "mapping"} for text in (golden, now))
    return not old or not new or new <= old
