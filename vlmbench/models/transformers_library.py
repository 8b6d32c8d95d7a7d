"""The transformers library without its annotations, which differ from version to version, and without its chatter."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
from functools import cache
from typing import Any
from urllib.parse import urlparse

_CONNECT_TIMEOUT_S = 5.0


def transformers_library() -> Any:
    """The package ``transformers``, imported now and not before: it takes a second.

    Its advice is not shown (errors are), nor are progress bars where nobody watches.
    """
    library = importlib.import_module("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if sys.stderr is None or not sys.stderr.isatty():
        library.utils.logging.disable_progress_bar()
        importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    return library


def transformers_module(name: str) -> Any:
    """A submodule: ``models.auto.processing_auto``."""
    return importlib.import_module(f"transformers.{name}")


@cache
def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers: asked once, within seconds, where its client would retry for half a minute.

    Behind a proxy the answer is yes: the client has to find out.
    """
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlparse(constants.ENDPOINT)
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname or "", port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
