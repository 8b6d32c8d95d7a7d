"""The transformers library without its annotations, which differ from version to version."""

from __future__ import annotations

import importlib
from typing import Any


def transformers_library() -> Any:
    """The package ``transformers``, imported now and not before: it takes a second."""
    return importlib.import_module("transformers")


def transformers_module(name: str) -> Any:
    """A submodule: ``models.auto.processing_auto``."""
    return importlib.import_module(f"transformers.{name}")
