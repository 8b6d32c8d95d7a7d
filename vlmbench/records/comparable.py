"""What makes rows incomparable: model, hardware, dtype and runtime that measured them. Standard library only.

Each session of a run directory stores what it ran on. Where these differ, a reader of the directory must be told:
what stands at the top of its provenance (and so in captions) then names all of them: ``NVIDIA A100 + NVIDIA H200``.

Runs are compared by :func:`identity`, wherever they meet: in a comparison of tokens, in a table of a whole grid. What a
provenance does not say is not known and no difference. A setting that is there and null is known: it is the default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What must agree. First where the top of a provenance has it (``part.*``: everything in that part), then where a
# session has it, or None where sessions of one directory may differ in it: those of another driver are warned of.
CHECKED: tuple[tuple[str, str | None], ...] = (
    ("device.type", "device.type"),
    ("device.name", "device.name"),
    ("device.power_limit_w", "device.power_limit_w"),
    ("device.threads", "device.threads"),
    ("device.driver", None),
    ("model.name", None),
    ("model.architecture", "model.architecture"),
    ("model.weights", "model.weights"),
    ("model.revision", "model.revision"),
    ("model.parameters", None),
    ("model.quantization", "model.quantization"),
    ("software.torch", None),
    ("software.cudnn", None),
    ("runtime.dtype", "model.dtype"),
    ("runtime.attention", "model.attention"),
    ("runtime.attention_by_tower", "model.attention_by_tower"),
    ("runtime.sdpa_backends", "model.sdpa_backends"),
    ("model.processor_backend", "model.processor_backend"),
    ("runtime.experts_implementation", "model.experts_implementation"),
    ("runtime.experts_implementation_decode", "model.experts_implementation_decode"),
    ("runtime.processes", "model.processes"),
    ("runtime.devices", "model.devices"),
    ("runtime.*", None),
    ("load.*", None),
)
"""The one notion of comparable: of sessions that continue a run, of runs in a comparison, of runs in a grid's table."""
_JOINT = " + "

# The device itself is compared under ``device``; how it was asked for (``auto``, ``cuda:1``) makes no difference.
_NEUTRAL = frozenset({"seed", "name", "device", "strict_device"}) | {
    "base_url", "api_key_env", "ca_file", "metrics_path", "timeout_s", "silence_s", "pairs",  # where a server is
}  # fmt: skip
# Null says that it is the default, or that there is none; elsewhere (a driver that does not tell) it says nothing.
_NULL_IS_KNOWN = ("runtime.", "model.quantization")
NULL = "null"
# What was asked for tells nothing where what came of it is known.
_CAME_OF: Mapping[str, str] = {"runtime.attn_implementation": "runtime.attention", "runtime.threads": "device.threads"}
# Settings by part of a model, told tower by tower once it is loaded.
_BY_TOWER = "runtime.attn_implementation."


def identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for a comparison: ``model.name``, ``device.name``, ``runtime.dtype`` … as far as known.

    A runtime setting of null is the value ``null``; of the cache it is what it stands for, ``dynamic`` (``static`` in
    a compiled run).
    """
    found: dict[str, Any] = {}
    provenance = with_mixture_named(provenance)
    for part, names in _parts().items():
        section = provenance.get(part)
        if part == "software" and isinstance(section, Mapping):
            packages = section.get("packages")
            section = {**section, "torch": packages.get("torch") if isinstance(packages, Mapping) else None}
        if isinstance(section, Mapping):
            whole = "*" in names
            chosen = (n for n in section if n not in _NEUTRAL) if whole else (n for n in names if n in section)
            found.update(_flat({name: section[name] for name in chosen}, part))
    if "runtime.attention" in found:
        found = {name: value for name, value in found.items() if not name.startswith(_BY_TOWER)}
    for asked, came in _CAME_OF.items():
        if came in found:
            found.pop(asked, None)
    if any(name.startswith("runtime.") for name in found):
        found.setdefault("runtime.engine", "transformers")  # older runs know no other
    if found.get("runtime.cache_implementation") == NULL:
        found["runtime.cache_implementation"] = "static" if found.get("runtime.compile") is True else "dynamic"
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances, as ``device.name: A against B``; what only one of them knows is no
    difference.
    """
    left, right = identity(a), identity(b)
    return [
        f"{name}: {left[name]} against {right[name]}" for name in left if name in right and left[name] != right[name]
    ]


_NOTED = (("device", "uuid"), ("software", "packages", "torch"), ("software", "packages", "transformers"))


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Differences that do not forbid a comparison, and what could not be checked."""
    said: list[str] = []
    for path in _NOTED:
        ours, theirs = _at(a, path), _at(b, path)
        if ours is not None and theirs is not None and ours != theirs:
            said.append(f"{'.'.join(path)} differs: {ours} against {theirs}")
    return said + unchecked(a, b)


def unchecked(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say what could not be checked, in one sentence; none where both provenances say all that is needed."""
    left, right = identity(a), identity(b)
    needed = ("model.name", "device.name", "runtime.dtype")
    unknown = [name for name in needed if name not in left or name not in right]
    return [f"not checked, because a file does not say it: {', '.join(unknown)}"] if unknown else []


def sessions_of(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the sessions that a provenance names, in their order; what is damaged is left out."""
    sessions = provenance.get("sessions")
    return [one for one in sessions if isinstance(one, Mapping)] if isinstance(sessions, list) else []


def turns_taken(session: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a session's provenance says of its turns with other processes: ``id``, ``member``, ``members``,
    ``runs``; empty where it took none.
    """
    found = session.get("turns")
    return found if isinstance(found, Mapping) else {}


def turn_ids(provenance: Mapping[str, Any]) -> set[str]:
    """Return the ids of the turns that a run's sessions took: runs that share one took turns with each other."""
    return {str(turns["id"]) for one in sessions_of(provenance) if (turns := turns_taken(one)).get("id")}


def varying(identities: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Names that have several values in what :func:`identity` gives, with these values in their order."""
    found: dict[str, list[Any]] = {}
    for one in identities:
        for name, value in one.items():
            if value not in (seen := found.setdefault(name, [])):
                seen.append(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    elif value is not None:
        yield name, _plain(value)
    elif name.startswith(_NULL_IS_KNOWN):
        yield name, NULL


# Runs of a grid: what no comparison may pass over, and what sets apart those that are called the same.

COLUMNS: Mapping[str, str] = {
    "model": "model.name",
    "weights": "model.weights",
    "dtype": "runtime.dtype",
    "device": "device.name",
}
"""Columns of a grid's table that say a part of a run's identity."""
# Models differ in these by nature; only between runs of one model do they speak against a comparison.
_OF_A_MODEL = ("model.architecture", "model.parameters", "model.revision", "runtime.experts_implementation")


def unlike_runs(identities: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What runs differ in that no comparison of their latencies may pass over, with the values, sorted.

    A grid over models is no mistake: the model's name is left out. Names are those of the table's columns where there
    is one (``dtype``, ``device``), else with their part (``runtime.compile``).
    """
    found = {name: values for name, values in varying(identities).items() if not name.startswith(_OF_A_MODEL)}
    by_model: dict[Any, list[Mapping[str, Any]]] = {}
    for one in identities:
        by_model.setdefault(one.get("model.name"), []).append(one)
    for same in by_model.values():
        for name, values in varying(same).items():
            if name.startswith(_OF_A_MODEL):
                found[name] = list(dict.fromkeys([*found.get(name, []), *values]))
    found.pop("model.name", None)
    columns = {name: column for column, name in COLUMNS.items()}
    return {columns.get(name, name): sorted(map(str, values)) for name, values in found.items()}


def apart(labels: Sequence[tuple[str | None, ...]], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each run apart from the runs that are called the same: ``cache_implementation static, compile True``.

    Args:
        labels: what each run is called (model, runtime, dtype, device …).
        identities: of each run.

    Returns:
        A text a run; empty where all runs of its label are alike.
    """
    alike: dict[tuple[str | None, ...], list[int]] = {}
    for number, label in enumerate(labels):
        alike.setdefault(label, []).append(number)
    said = [""] * len(labels)
    for numbers in alike.values():
        names = varying([identities[i] for i in numbers])
        for i in numbers:
            told = (f"{_short(name)} {identities[i][name]}" for name in names if name in identities[i])
            said[i] = ", ".join(told)
    return said


def _short(name: str) -> str:
    return name.removeprefix("runtime.").replace("device.", "device ").replace("model.", "model ").replace("_", " ")


def unlike(sessions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What differs between sessions: a name (``device.name``, ``runtime.dtype``) to its values, in their order.

    What a session does not say (an older one, or a GPU that does not tell its power limit) is no difference. Another
    GPU of the same kind, another host, and other versions of driver or packages are none either: those are warned of.
    """
    found: dict[str, list[Any]] = {}
    for name, place in CHECKED:
        values = [value for session in sessions if place and (value := _value(session, place)) is not None]
        if len(different := list(dict.fromkeys(values))) > 1:
            found[name] = different
    return found


def unlike_words(found: Mapping[str, Sequence[Any]]) -> list[str]:
    """What :func:`unlike` found, in words: ``device.name: NVIDIA A100, then NVIDIA H200``."""
    return [f"{name}: {', then '.join(map(str, values))}" for name, values in found.items()]


def with_mixture_named(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A provenance whose top says all that its sessions ran on, where they are unlike; else as it is.

    Texts that differ are joined by `` + ``; numbers (of GPUs, say) stay the first session's. ``unlike`` lists, in
    words, what differs.
    """
    sessions = provenance.get("sessions")
    sessions = [s for s in sessions if isinstance(s, Mapping)] if isinstance(sessions, list) else []
    found = unlike(sessions)
    if not found:
        return dict(provenance)
    whole = {**provenance, "unlike": unlike_words(found)}
    for checked, place in CHECKED:
        values = found.get(checked, [])
        if place is None or not values or not all(isinstance(value, str) for value in values):
            continue
        for part, name in ((one.split(".", 1)) for one in (place, checked)):
            if isinstance(section := whole.get(part), Mapping) and name in section:
                whole[part] = {**section, name: _JOINT.join(values)}
    return whole


def _parts() -> dict[str, list[str]]:
    """Part of a provenance to the names in it that must agree (``*``: all)."""
    found: dict[str, list[str]] = {}
    for checked, _ in CHECKED:
        part, name = checked.split(".", 1)
        found.setdefault(part, []).append(name)
    return found


def _value(session: Mapping[str, Any], place: str) -> Any:
    part, name = place.split(".", 1)
    section = session.get(part)
    value = section.get(name) if isinstance(section, Mapping) else None
    if isinstance(value, Mapping):
        value = "; ".join(f"{name} {item}" for name, item in sorted(value.items())) or None
    return _plain(value) if isinstance(value, str | int | float) else None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix("torch.")
    return round(value) if isinstance(value, float) else value  # watts, as a driver reports them
