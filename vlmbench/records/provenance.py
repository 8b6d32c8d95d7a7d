"""Where a run's numbers come from: configuration, code, machine, sessions; ``provenance.json`` of a run directory.

Shape of the file::

    {"schema_version", "fingerprint", "config", "seed",
     "model": {facts}, "runtime": {…}, "dataset": {"name"}, "sweep": {"name"},
     "device": {"type", "name", "uuid", …}, "host": {"cpu", "memory_bytes", …}, "software": {"python", "packages", …},
     "sessions": [{"session", "started_unix_s", "ended_unix_s", "command", "code", "slurm", "pid",
                   "model", "device", "host", "software", "state_before", "state_after", "warnings"}, …]}

What stands at the top is the first session's; a continued run has several sessions. Sessions of unlike hardware, dtype
or runtime (:mod:`vlmbench.records.comparable`) are refused; where they were allowed, the top names all of them and
``unlike`` says what differs. Paths are shortened and secrets
hidden (:mod:`vlmbench.records.redact`), so that the file can be published.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard

from vlmbench.errors import DirectoryConflictError, InputError
from vlmbench.hiding import with_environment
from vlmbench.machine.host import device_facts, device_state, host_facts, slurm_ids, software
from vlmbench.machine.installation import code_state
from vlmbench.machine.wall_clock import unix_s
from vlmbench.records.comparable import unlike, unlike_words, with_mixture_named
from vlmbench.records.config_history import as_stored, flat
from vlmbench.records.files import strict, write_json
from vlmbench.records.reading import RECORDS_NAME
from vlmbench.records.redact import shareable, shareable_command
from vlmbench.text import parse_json

PROVENANCE_NAME = "provenance.json"
# Settings that change what is shown, where it is put or how long it may take, not what one run measures.
IGNORED = (
    "output_dir", "progress", "notes", "break_lock", "dry_run", "target_device", "target_memory_gib", "detach",
    "objective", "latency_ms", "percentile", "metric", "confirm", "launcher", "hydra", "allow_unlike", "figures",
    "tracker", "measurement.time_limit_s", "measurement.turns",
    "runtime.strict_device", "probe.kernels.trace_dir",
)  # fmt: skip
SUBMITTED_SOURCE = "VLMBENCH_SUBMITTED_SOURCE"
_COPIED = ("model", "device", "host", "software")  # the first session's stand at the top, too
_PARTS = (*_COPIED, "code", "slurm")
_GROUPS = ("dataset", "sweep", "runtime", "load", "output", "measurement", "figures")  # of the configuration
_SHOWN_DIFFERENCES = 8


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration in canonical JSON, keys in order.

    Texts from the environment (``${oc.env:NAME}``) stand for what the variable holds, unless that is a secret: a token
    that was renewed makes no other configuration, and the fingerprint tells nothing of it.

    Args:
        config: plain mappings, lists and scalars (no DictConfig); :data:`IGNORED` keys are left out.
    """
    return _digest(dict(flat(config)))


def _digest(keys: Mapping[str, Any], *, secrets: bool = False) -> str:
    """Of dotted keys and their values; with ``secrets`` as it was before these were left out."""
    kept = {
        key: with_environment(value, name=key, secrets=secrets) for key, value in keys.items() if not _is_ignored(key)
    }
    text = json.dumps(strict(kept), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def collect(
    config: Mapping[str, Any],
    *,
    model_facts: Mapping[str, Any],
    device: str,
    seed: int,
    state_before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything about this process, as the first session of a provenance (see the shape above).

    Args:
        model_facts: ``VisionLanguageModel.facts``.
        device: ``cpu``, ``cuda:0`` …; for CUDA, torch must be initialised there.
        state_before: a snapshot taken earlier; None takes one now.
    """
    code = code_state()
    session = {
        "session": 0,
        "started_unix_s": unix_s(),
        "ended_unix_s": None,
        "command": shareable_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "code": code,
        "slurm": slurm_ids(),
        "pid": os.getpid(),
        "model": {"name": _name(config, "model"), **shareable(dict(model_facts))},
        "device": device_facts(device),
        "host": host_facts(),
        "software": software(),
        "state_before": dict(state_before) if state_before is not None else device_state(device),
        "state_after": None,
        "warnings": _since_submit(code),
    }
    return {
        "schema_version": 1,
        "fingerprint": fingerprint(config),
        "ignored": list(IGNORED),
        "config": shareable(strict(config)),
        "seed": seed,
        "runtime": {**_node(config, "runtime"), **_runtime_facts(model_facts)},
        "dataset": {"name": _name(config, "dataset")},
        "sweep": {"name": _name(config, "sweep")},
        **{key: session[key] for key in _COPIED},
        "sessions": [session],
    }


def read_provenance(directory: Path) -> dict[str, Any] | None:
    """The provenance of a run directory; None when it has none.

    Raises:
        InputError: the file is there and cannot be read.
    """
    path = Path(directory) / PROVENANCE_NAME
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read '{path}': {why}.\nChoose another directory with output_dir=DIR.") from error
    if not _is_provenance(found):
        raise InputError(f"'{path}' is no provenance of vlmbench.\nChoose another directory with output_dir=DIR.")
    return found


def _is_provenance(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it has the parts that readers rely on, each of the kind that it is."""
    return isinstance(found, dict) and bool(found.get("sessions")) and has_part_types(found)


def has_part_types(found: Mapping[str, Any]) -> bool:
    """Whether the parts of a provenance that are there are of the kind that readers rely on."""
    sessions, config = found.get("sessions", []), found.get("config", {})
    if not isinstance(sessions, list) or not all(isinstance(part, dict) for part in (config, *sessions)):
        return False
    if not all(isinstance(part.get(name, {}), dict) for part in (found, *sessions) for name in (*_PARTS, "runtime")):
        return False
    if not all(isinstance(part[name], dict | None) for part in (found, config) for name in _GROUPS if name in part):
        return False
    return all(isinstance(session.get("warnings", []), list) for session in sessions)


def check_directory(directory: Path, config: Mapping[str, Any]) -> bool:
    """Whether the directory holds an earlier session of this very configuration; False when nothing is in its way.

    Cheap, and to be asked before a model is loaded.

    Raises:
        DirectoryConflictError: it belongs to another configuration; the message lists what differs.
        InputError: it cannot be read.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; output_dir must be a directory, or not exist yet.")
    existing = read_provenance(directory)
    if existing is None:
        records = directory / RECORDS_NAME
        if records.exists() and records.stat().st_size:
            raise DirectoryConflictError(
                f"'{directory}' has a {RECORDS_NAME} but no {PROVENANCE_NAME}, so nobody knows what it measured.\n"
                "Choose another directory with output_dir=DIR."
            )
        return False
    check_same(existing, config, directory=directory)
    return True


def check_same(existing: Mapping[str, Any], config: Mapping[str, Any], *, directory: Path) -> None:
    """Refuse to continue a run with another configuration.

    Keys that came, left or moved since the run was begun make no other configuration where they change nothing
    (:mod:`vlmbench.records.config_history`).

    Raises:
        DirectoryConflictError: the fingerprints differ; the message lists the keys, old → new.
    """
    stored = existing.get("config", {})
    for alike in (dict(flat(config)), as_stored(config, stored)):
        if existing.get("fingerprint") in (_digest(alike), _digest(alike, secrets=True)):
            return
    old, new = dict(flat(stored)), as_stored(shareable(strict(config)), stored)
    keys = [k for k in dict.fromkeys([*old, *new]) if not _is_ignored(k) and old.get(k, "") != new.get(k, "")]
    shown = [f"{k}: {_show(old, k)} → {_show(new, k)}" for k in keys[:_SHOWN_DIFFERENCES]]
    rest = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    differences = "; ".join(shown) + rest or "only in how its fingerprint was made (another version of vlmbench)"
    raise DirectoryConflictError(
        f"'{directory}' belongs to another configuration: {differences}.\n"
        "Choose another directory with output_dir=DIR, or use the settings it was begun with."
    )


def check_alike(directory: Path, session: Mapping[str, Any], *, allow_unlike: bool = False) -> None:
    """Refuse to mix what this process would measure with what unlike hardware, dtype or runtime measured.

    Args:
        session: ``device`` and ``model`` as in a session of :func:`collect`, as far as known already: what is absent
            is not compared, so that a wrong GPU is found before a model is loaded.
        allow_unlike: do not refuse.

    Raises:
        DirectoryConflictError: the message says what differs and the ways out.
        InputError: the provenance cannot be read.
    """
    existing = read_provenance(directory)
    found = unlike([*existing["sessions"], session]) if existing is not None and not allow_unlike else {}
    # Sessions that were mixed on purpose stay mixed: only what is new counts.
    known = unlike(existing["sessions"]) if existing is not None else {}
    if new := {name: values for name, values in found.items() if values != known.get(name)}:
        raise DirectoryConflictError(
            f"'{directory}' was measured otherwise, and rows of both would be one result: "
            f"{'; '.join(unlike_words(new))}.\n"
            "Choose another directory with output_dir=DIR, or set allow_unlike=true if you mean to mix them."
        )


def begin_session(
    directory: Path, current: Mapping[str, Any], *, allow_unlike: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Write ``provenance.json``, or add this session to the one that is there (hold the run lock).

    Args:
        directory: the run directory; its configuration was checked with :func:`check_directory`.
        current: from :func:`collect`.
        allow_unlike: whether sessions of unlike hardware, dtype or runtime may be mixed.

    Returns:
        The whole provenance, this session last, and warnings for the user: what is unlike the sessions before.

    Raises:
        DirectoryConflictError: see :func:`check_alike`; nothing was written.
    """
    existing = read_provenance(directory)
    session = dict(current["sessions"][-1])
    check_alike(directory, session, allow_unlike=allow_unlike)
    if existing is None:
        whole = dict(current)
    else:
        session["session"] = len(existing["sessions"])
        session["warnings"] = [*session["warnings"], *_changes(existing["sessions"][-1], session)]
        whole = with_mixture_named({**existing, "sessions": [*existing["sessions"], session]})
    write_json(Path(directory) / PROVENANCE_NAME, whole)
    return whole, session["warnings"]


def end_session(
    directory: Path, begun: Mapping[str, Any], *, device: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Note the end of the last session: time, state of the device, ``extra``; returns the whole provenance.

    Args:
        begun: the whole provenance as :func:`begin_session` wrote it; what became of the file meanwhile is replaced.
        device: ``cpu``, ``cuda:0`` ….
        extra: facts that are known at the end only.
    """
    ended = {"ended_unix_s": unix_s(), "state_after": device_state(device), **(extra or {})}
    *earlier, last = begun["sessions"]
    whole = {**begun, "sessions": [*earlier, {**last, **strict(ended)}]}
    write_json(Path(directory) / PROVENANCE_NAME, whole)
    return whole


def _since_submit(code: Mapping[str, Any]) -> list[str]:
    """Code is read when a job starts; the launcher says in the environment what it was at submit."""
    submitted = os.environ.get(SUBMITTED_SOURCE)
    if submitted is None or submitted == _at(code, ("vlmbench", "source_sha256")):
        return []
    return [f"the code changed between submit and start (sources {submitted[:12]} at submit)"]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes the rows of two sessions unlike each other, in words."""
    warnings = []
    if _code_id(before) != _code_id(now):
        old, new = (_commit(s) for s in (before, now))
        warnings.append(f"the code changed since the session before (vlmbench {old} → {new})")
    for text in unlike_words(unlike([before, now])):
        warnings.append(f"rows of unlike sessions are mixed here, as allow_unlike allows ({text})")
    for label, path in (
        ("GPU", ("device", "uuid")), ("driver", ("device", "driver")), ("host", ("host", "host")),
        ("CPU", ("host", "cpu")), ("Python", ("software", "python")), ("torch", ("software", "packages", "torch")),
        ("transformers", ("software", "packages", "transformers")), ("cuDNN", ("software", "cudnn")),
    ):  # fmt: skip
        old, new = _at(before, path), _at(now, path)
        if old != new:
            warnings.append(f"{label} changed since the session before ({old} → {new})")
    return warnings


def _code_id(session: Mapping[str, Any]) -> Any:
    return _at(session, ("code", "vlmbench", "source_sha256")), _at(session, ("code", "caller"))


def _commit(session: Mapping[str, Any]) -> str:
    git = _at(session, ("code", "vlmbench", "git")) or {}
    commit = str(git.get("commit") or _at(session, ("code", "vlmbench", "source_sha256")))[:12]
    return f"{commit}+changes" if git.get("dirty") else commit


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _is_ignored(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in IGNORED)


def _show(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(absent)"


def _node(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    node = config.get(key)
    return shareable(dict(node)) if isinstance(node, Mapping) else {}


def _name(config: Mapping[str, Any], key: str) -> str | None:
    name = _node(config, key).get("name")
    return None if name is None else str(name)


def _runtime_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the model says it really runs with, over what was asked for."""
    names = {"dtype": "dtype", "attention": "attention", "attn_implementation": "attention"}
    names |= {name: name for name in ("experts_implementation", "experts_implementation_decode", "sdpa_backends")}
    shown = {shown: str(facts[name]) for name, shown in names.items() if facts.get(name) is not None}
    kept = ("processes", "devices", "attention_by_tower")
    return shown | {key: facts[key] for key in kept if facts.get(key) is not None}
