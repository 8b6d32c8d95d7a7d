"""Why runs failed, counted by kind: two files that are cut off are one kind, whatever their names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S+|\d[\d.,]*")  # what differs between two failures of one kind
_SHOWN = 4


@dataclass
class Reasons:
    """Counts of failures by kind, with the first reason of each as its example."""

    _kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        """Count one failure."""
        line = next(iter(reason.splitlines()), reason)
        kind = _NAMES.sub("…", line)
        number, example = self._kinds.get(kind, (0, line))
        self._kinds[kind] = (number + 1, example)

    def words(self) -> str:
        """The kinds, the commonest first: ``2: cannot read 'a.jpg', for example; 1: …``; of one kind its example."""
        ranked = sorted(self._kinds.values(), key=lambda kind: -kind[0])
        if len(ranked) == 1:
            return ranked[0][1]
        said = [f"{number}: {example}{', for example' if number > 1 else ''}" for number, example in ranked[:_SHOWN]]
        rest = sum(number for number, _ in ranked[_SHOWN:])
        return "; ".join([*said, *([f"{rest} for other reasons"] if rest else [])])
