"""What can be said of a checkpoint's folder: before loading, and of what went wrong. Imports no torch.

Transformers stops at the first problem, and says of a damaged or odd file neither which one nor why; the headers of
safetensors files tell.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from vlmbench.errors import ModelError
from vlmbench.text import parse_json

# Hashes of a checkpoint's files, where something says what they should be. Standard library only.

SUMS = "SHA256SUMS"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LINE = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")


def listed_hashes(folder: Path) -> dict[str, str]:
    """File name to SHA-256, from ``SHA256SUMS``; empty where there is none.

    Raises:
        ModelError: a line that is not ``<hash>  <name>``, or a name outside the folder.
    """
    file = folder / SUMS
    if not file.is_file():
        return {}
    hashes = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None or Path(found[2]).is_absolute() or ".." in Path(found[2]).parts:
            raise ModelError(f"line {number} of '{file}' must be a SHA-256, two spaces and a file of the folder")
        hashes[found[2].removeprefix("./")] = found[1].lower()
    return hashes


def downloaded_hashes(folder: Path) -> dict[str, str]:
    """File name to SHA-256, as the hub gave it when the files were downloaded; large files only (LFS)."""
    hashes = {}
    for record in folder.glob(".cache/huggingface/download/*.metadata"):
        lines = record.read_text(encoding="utf-8", errors="replace").splitlines()  # commit, etag, time
        if len(lines) > 1 and _SHA256.fullmatch(lines[1]):
            hashes[record.name.removesuffix(".metadata")] = lines[1]
    for file in folder.iterdir():
        blob = file.resolve()
        if file.is_symlink() and blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            hashes[file.name] = blob.name
    return {name: value for name, value in hashes.items() if (folder / name).is_file()}


def check_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Hash the files and compare; a gigabyte takes about a second.

    Raises:
        ModelError: names every file that is missing or has another hash.
    """
    missing = sorted(name for name in hashes if not (folder / name).is_file())
    if missing:
        raise ModelError(f"'{folder}' lacks files that {SUMS} lists: {', '.join(missing)}")
    wrong = [f"{name} ({found[:12]}…, not {hashes[name][:12]}…)" for name, found in _wrong(folder, hashes)]
    if wrong:
        raise ModelError(f"files in '{folder}' have wrong SHA-256 hashes: {', '.join(wrong)}; get them again")


def _wrong(folder: Path, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """(file, its hash) where it is not the expected one."""
    found = []
    for name, expected in sorted(hashes.items()):
        with (folder / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != expected:
            found.append((name, digest))
    return found


_CONVERTER = "python -m vlmbench.models.molmo.convert"
_SHOWN = 5


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a checkpoint, before transformers looks for it on the hub.

    Raises:
        ModelError: no folder, no configuration, no weights, Molmo 1 in a layout that needs the converter, or hashes
            other than ``SHA256SUMS`` lists.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder '{folder}' does not exist; give a folder with config.json and *.safetensors")
    if is_released_molmo(folder) and not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
        raise needs_converter(folder, "without safetensors")
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder '{folder}' has no config.json")
    if not any(folder.glob("*.safetensors")):
        others = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pth"), *folder.glob("*.pt")])
        found = f" (it has {', '.join(others[:3])}: convert them to safetensors)" if others else ""
        raise ModelError(f"model folder '{folder}' has no *.safetensors weights{found}; weights=random needs none")
    check_hashes(folder, listed_hashes(folder))


class ReleasedCheckpointError(ValueError):
    """The configuration is of Molmo 1 as released, where a converted one is expected."""


def needs_converter(folder: Path, why: str) -> ModelError:
    """Say of Molmo 1 as released which commands make a folder that loads.

    Args:
        why: what keeps it from being loaded as it is, in a few words behind "checkpoint".
    """
    made = f"{folder.resolve()}-converted"
    return ModelError(
        f"'{folder}' is a released Molmo 1 checkpoint {why}; convert it once: "
        f"{_CONVERTER} {shlex.quote(str(folder))} {shlex.quote(made)} — then model.path={shlex.quote(made)}"
    )


def is_released_molmo(folder: Path) -> bool:
    """Tell whether a folder holds Molmo 1 as released.

    That is the hub's layout (config.json without nested configurations) or allenai/molmo's own (config.yaml, model.pt).
    """
    file = folder / "config.json"
    if not file.is_file():
        return (folder / "config.yaml").is_file() and (folder / "model.pt").is_file()
    try:
        stored = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return False  # transformers says what is wrong with it
    return isinstance(stored, dict) and stored.get("model_type") == "molmo" and "text_config" not in stored


def released_molmo_on_hub(hub_id: str) -> str:
    """What to do where a hub id turned out to be Molmo 1 as released."""
    return (
        f"'{hub_id}' holds Molmo 1 as released, which is loaded from a folder: hf download {hub_id} --local-dir SRC; "
        f"then model.path=SRC (with quantization or tp_plan: {_CONVERTER} SRC DST; model.path=DST)"
    )


def commit_of_folder(folder: Path, *, from_cache: bool) -> str | None:
    """The hub's commit of a folder's files, 40 hexadecimal digits; None where nothing tells."""
    record = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if from_cache:
        found = folder.name
    elif record.is_file():
        found = record.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    else:
        return None
    return found if re.fullmatch("[0-9a-f]{40}", found) else None


def damaged_files(folder: Path | None) -> str:
    """The safetensors files of a folder that cannot be read, with their sizes; empty where all can."""
    safetensors: Any = importlib.import_module("safetensors")
    found = []
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        try:
            with safetensors.safe_open(file, framework="numpy"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            found.append(f"{file.name} ({file.stat().st_size:,} bytes: {error})")
    return ", ".join(found)


def check_tensors(source: str, info: Mapping[str, Any], folder: Path | None) -> None:
    """Refuse a checkpoint whose tensors are not exactly the model's.

    Args:
        info: what ``from_pretrained(output_loading_info=True)`` gives.
        folder: of the files, where known.

    Raises:
        ModelError: names missing, surplus and wrongly shaped tensors.
    """
    kinds = (("missing", "missing_keys"), ("surplus", "unexpected_keys"), ("wrongly shaped", "mismatched_keys"))
    problems = [
        f"{kind} tensors: {_some([_named(item) for item in info[key]])}" for kind, key in kinds if info.get(key)
    ]
    if problems:
        odd = f" (in the files: {stacked})" if (stacked := uneven_stacks(folder)) else ""
        raise ModelError(f"the checkpoint '{source}' does not fit its architecture: {'; '.join(problems)}{odd}")


def _named(item: Any) -> str:
    """A tensor's name, with both shapes where they differ."""
    if not isinstance(item, tuple):
        return str(item)
    name, *shapes = item
    return f"{name} {tuple(shapes[0])}, not {tuple(shapes[1])}" if len(shapes) == 2 else str(name)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more


def uneven_stacks(folder: Path | None) -> str:
    """Experts' tensors that are absent or unlike their siblings, by the names in the files.

    Transformers stacks experts into one tensor while loading; what does not stack it reports under the stack's name.
    """
    groups: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = defaultdict(dict)
    for name, shape in _shapes(folder):
        if re.search(r"\.experts\.\d+\.", name):
            groups[re.sub(r"(?<=\.)\d+(?=\.)", "{}", name)][
                tuple(map(int, re.findall(r"(?<=\.)(\d+)(?=\.)", name)))
            ] = shape
    missing, wrong = [], []
    for pattern, shapes in groups.items():
        axes = [sorted({index[axis] for index in shapes}) for axis in range(pattern.count("{}"))]
        missing += [pattern.format(*index) for index in product(*axes) if index not in shapes]
        usual = Counter(shapes.values()).most_common(1)[0][0]
        wrong += [f"{pattern.format(*i)} {shape}, not {usual}" for i, shape in shapes.items() if shape != usual]
    found = {"missing": missing, "wrongly shaped": wrong}
    return "; ".join(f"{kind} {_some(names)}" for kind, names in found.items() if names)


def _shapes(folder: Path | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor in a folder's readable safetensors files; headers only."""
    safetensors: Any = importlib.import_module("safetensors")
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        try:
            with safetensors.safe_open(file, framework="numpy") as handle:
                yield from [(name, tuple(handle.get_slice(name).get_shape())) for name in handle.keys()]  # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            continue
