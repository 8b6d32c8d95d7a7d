"""What became of configuration keys since run directories were begun, so that these can still be continued.

A run directory stores the configuration that it was begun with and its fingerprint. Four things may have happened to a
key since then, each has a table here, and nothing else is forgiven:

* it is **new**: :data:`ADDED` says which value means "as before there was such a key";
* it has **left**: :data:`REMOVED` says which value meant what is done today;
* its component has **moved**: :data:`ALIASES` says where a stored ``_target_`` lies today;
* its default has **changed**, and no measured row with it: :data:`RETUNED` says which default it had.

:func:`as_stored` writes the present configuration in the keys of the stored one. Who adds a key to ``conf/``, or to a
component that is configured there, adds it to :data:`ADDED` in the same commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Nested as in conf/, each leaf the value with which nothing changes: {"measurement": {"clients": 1}, "engine": None}.
ADDED: dict[str, Any] = {
    "figures": {
        "extra": [],
        "style": "page",
        "width": None,
        "font_size": None,
        "stylesheet": None,
        "formats": ["png", "pdf"],
        "dpi": 200,
    },
    "intervention": {"_target_": "vlmbench.interventions.none.NoIntervention"},
    "probe": {"timeline": {"nvtx": False}},
    "measurement": {
        "batch": "different",
        "controls": True,
        "yardstick": True,
        "change_processor": False,
        "turns": {"directory": None, "members": 2, "runs": 8, "wait_s": 1800.0},
    },
    "dataset": {"sizes": "coco"},
    # Of Qwen2-VL and Qwen2.5-VL: what later releases of transformers take by themselves.
    "model": {
        "config": {
            "text_config": {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
            }
        }
    },
    "baseline": None,
    "candidate": None,
    "threshold": 0.03,
    "gate": None,
    "save_baseline": None,
    "baselines": ".vlmbench/baselines",
    "export_weights": False,
    "objective": None,
    "latency_ms": None,
    "percentile": 95.0,
    "metric": "T_request",
    "confirm": True,
    "tracker": {"_target_": "vlmbench.trackers.none.NoTracker"},
    "load": {
        "name": "none",
        "concurrency": 1,
        "rate_per_s": None,
        "arrivals": "poisson",
        "trace_file": None,
        "warmup_requests": None,
        "max_outstanding": 1000,
        "retries": 0,
        "ttft_limit_ms": None,
        "tpot_limit_ms": None,
        "request_limit_ms": None,
    },
    "runtime": {
        "engine": "transformers",
        "cache_step": 256,
        "capture": ["vision_encoder", "projector", "language_model"],
        "decode_compile": False,
        "prefill_compile": False,
        "enforce_eager": False,
        "max_model_len": 4096,
        "same_weights": False,
        "encoder_stats": False,
        "untried_version": False,
        "engine_options": {},
        "base_url": None,
        "model": None,
        "dialect": "auto",
        "connection": "fresh",
        "timeout_s": 600.0,
        "silence_s": 60.0,
        "api_key_env": None,
        "proxy": "environment",
        "ca_file": None,
        "cache": "defeat",
        "metrics_path": None,
        "extra_body": {},
        "pairs": 0,
        "devices": 1,
        "sdpa_backends": None,
    },
}
# The same for keys that are gone, each leaf the value that they had where they changed nothing.
REMOVED: dict[str, Any] = {}
# Defaults as they were, of keys that change no measured row: where one is stored, nothing else was asked for.
RETUNED: dict[str, Any] = {"measurement": {"trace_requests": 1}}
# A ``_target_`` as it was stored → as it is called today.
ALIASES: dict[str, str] = {}

TARGET = "_target_"


def current_target(target: str) -> str:
    """Return the present path of a component, given the path that it has or had."""
    return ALIASES.get(target, target)


def as_stored(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Write a configuration in the keys and ``_target_`` paths of an earlier one, as far as the tables allow.

    Args:
        config: the present configuration, resolved and plain.
        stored: the configuration that a run directory was begun with.

    Returns:
        Dotted keys and values. Equal to what ``stored`` flattens to if and only if both ask for the same run.
    """
    now, before = dict(flat(config)), dict(flat(stored))
    added, removed = dict(flat(ADDED)), dict(flat(REMOVED))
    if "sweep.axes.batch_size" in before:
        added["measurement.batch"] = "copies"  # what a batch was before the key was there
    kept = {k: v for k, v in now.items() if k in before or not _is(v, added.get(k, _NOTHING))}
    back = {k: v for k, v in before.items() if k not in now and _is(v, removed.get(k, _NOTHING))}
    back |= {k: v for k, v in flat(RETUNED) if k in now and _is(before.get(k), v)}
    return {key: _spelt(key, value, before.get(key)) for key, value in {**kept, **back}.items()}


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and leaves; a list counts as a leaf, an empty mapping too."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


_NOTHING = object()


def _is(value: Any, other: Any) -> bool:
    """Equal, and of one type: ``True`` is not 1."""
    return type(value) is type(other) and bool(value == other)


def _spelt(key: str, value: Any, before: Any) -> Any:
    """A ``_target_`` in the stored spelling where both name one component."""
    if key.rpartition(".")[2] != TARGET or not isinstance(value, str) or not isinstance(before, str):
        return value
    return before if current_target(value) == current_target(before) else value
