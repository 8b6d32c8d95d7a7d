"""Sentences made of pieces: text, and numbers that a page may show in a look of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Piece = str | dict[str, Any]
"""A text, or one with a look: ``{"b": bold}``, ``{"ci": interval}``."""

Sentence = list[Piece]


def ci(text: str) -> list[Piece]:
    """An interval in brackets as a piece that may not break; nothing for an empty text."""
    return [" ", {"ci": f"({text})"}] if text else []


def bold(text: str) -> Piece:
    """A number that the sentence is about."""
    return {"b": text}


def plain(pieces: Iterable[Piece]) -> str:
    """Pieces as one text, for the terminal and for labels."""
    return "".join(p if isinstance(p, str) else str(next(iter(p.values()))) for p in pieces)
