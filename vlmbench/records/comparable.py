"""What makes rows incomparable: model, hardware, dtype and runtime that measured them. Standard library only.

Each session of a run directory stores what it ran on. Where these differ, a reader of the directory must be told:
what stands at the top of its provenance (and so in captions) then names all of them: ``NVIDIA A100 + NVIDIA H200``.

Runs are compared by :func:`identity`, wherever they meet: in a comparison of tokens, in a table of a whole grid. What a
provenance does not say is not known and no difference. A setting that is there and null is known: it is the default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Where a session has it, where the top of a provenance has it (None: nowhere else).
_COMPARED: tuple[tuple[tuple[str, str], tuple[str, str] | None], ...] = (
    (("device", "type"), None),
    (("device", "name"), None),
    (("device", "power_limit_w"), None),
    (("device", "threads"), None),
    (("model", "architecture"), None),
    (("model", "weights"), None),
    (("model", "revision"), None),
    (("model", "quantization"), None),
    (("model", "dtype"), ("runtime", "dtype")),
    (("model", "attention"), ("runtime", "attention")),
    (("model", "attention_by_tower"), ("runtime", "attention_by_tower")),
    (("model", "sdpa_backends"), ("runtime", "sdpa_backends")),
    (("model", "experts_implementation"), ("runtime", "experts_implementation")),
    (("model", "experts_implementation_decode"), ("runtime", "experts_implementation_decode")),
    (("model", "processes"), ("runtime", "processes")),
    (("model", "devices"), ("runtime", "devices")),
)
_JOINT = " + "

# What runs must have in common, by part of a provenance; None: everything in it.
_IDENTITY: Mapping[str, tuple[str, ...] | None] = {
    "model": ("name", "architecture", "weights", "revision", "parameters", "quantization"),
    "device": ("type", "name", "power_limit_w", "threads", "driver"),
    "software": ("torch", "cudnn"),
    "runtime": None,
    "load": None,
}
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
    for part, names in _IDENTITY.items():
        section = provenance.get(part)
        if part == "software" and isinstance(section, Mapping):
            packages = section.get("packages")
            section = {**section, "torch": packages.get("torch") if isinstance(packages, Mapping) else None}
        if isinstance(section, Mapping):
            chosen = (n for n in section if n not in _NEUTRAL) if names is None else (n for n in names if n in section)
            found.update(_flat({name: section[name] for name in chosen}, part))
    if "runtime.attention" in found:
        found = {name: value for name, value in found.items() if not name.startswith(_BY_TOWER)}
    for asked, came in _CAME_OF.items():
        if came in found:
            found.pop(asked, None)
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


def unlike(sessions: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What differs between sessions: a name (``device.name``, ``runtime.dtype``) to its values, in their order.

    What a session does not say (an older one, or a GPU that does not tell its power limit) is no difference. Another
    GPU of the same kind, another host, and other versions of driver or packages are none either: those are warned of.
    """
    found: dict[str, list[Any]] = {}
    for path, shown in _COMPARED:
        values = [value for session in sessions if (value := _value(session, path)) is not None]
        if len(different := list(dict.fromkeys(values))) > 1:
            found[".".join(shown or path)] = different
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
    for path, shown in _COMPARED:
        values = found.get(".".join(shown or path), [])
        if not values or not all(isinstance(value, str) for value in values):
            continue
        for part, name in (path, shown or path):
            if isinstance(section := whole.get(part), Mapping) and name in section:
                whole[part] = {**section, name: _JOINT.join(values)}
    return whole


def _value(session: Mapping[str, Any], path: tuple[str, str]) -> Any:
    section = session.get(path[0])
    value = section.get(path[1]) if isinstance(section, Mapping) else None
    if isinstance(value, Mapping):
        value = "; ".join(f"{name} {item}" for name, item in sorted(value.items())) or None
    return _plain(value) if isinstance(value, str | int | float) else None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix("torch.")
    return round(value) if isinstance(value, float) else value  # watts, as a driver reports them
