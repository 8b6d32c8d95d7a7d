"""Tensors of a checkpoint by name, one at a time: safetensors or torch files, sharded or not.

Files are mapped, not read: what a tensor does not touch stays on disk. Mapped pages count as resident memory once
touched, so a file is mapped anew after :data:`REMAP_BYTES`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from vlmbench.errors import ModelError, first_line
from vlmbench.text import parse_json

REMAP_BYTES = 1 << 30
_CANDIDATES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model.pt",  # allenai/molmo's own, unsharded
)


class TensorFile(Protocol):
    """One mapped file."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def get(self, name: str, rows: tuple[int, int] | None) -> torch.Tensor:
        """A tensor, or rows [first, last) of it."""


@dataclass(kw_only=True)
class SafetensorsFile:
    """A safetensors file."""

    path: Path

    def __post_init__(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle: Any = safe_open(self.path, framework="pt")
            self._handle = handle
            parts = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  # no mapping
        except SafetensorError as error:
            raise ModelError(
                f"'{self.path}' is damaged or cut off ({error}); it has {self.path.stat().st_size:,} bytes: "
                "get it again"
            ) from error
        self.shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
        self.dtypes = {name: _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8) for name, part in parts.items()}

    def get(self, name: str, rows: tuple[int, int] | None) -> torch.Tensor:
        """A tensor, or rows [first, last) of it."""
        if rows is None:
            return self._handle.get_tensor(name)  # type: ignore[no-any-return]
        return self._handle.get_slice(name)[rows[0] : rows[1]]  # type: ignore[no-any-return]


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(kw_only=True)
class TorchFile:
    """A file of ``torch.save``: a mapping of names to tensors and nothing that could run code."""

    path: Path

    def __post_init__(self) -> None:
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"'{self.path}' holds more than tensors, or is damaged; it is not loaded because that could run code: "
                f"{first_line(error)}"
            ) from error
        except (RuntimeError, EOFError, OSError) as error:
            raise ModelError(
                f"'{self.path}' is damaged or cut off ({first_line(error)}); it has "
                f"{self.path.stat().st_size:,} bytes: get it again"
            ) from error
        if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
            loaded = loaded["model"]
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise ModelError(f"'{self.path}' must hold a mapping of names to tensors (got {type(loaded).__name__})")
        self._tensors: dict[str, torch.Tensor] = loaded
        self.shapes = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in loaded.items()}

    def get(self, name: str, rows: tuple[int, int] | None) -> torch.Tensor:
        """A tensor, or rows [first, last) of it."""
        tensor = self._tensors[name]
        return tensor if rows is None else tensor[rows[0] : rows[1]]


class TensorSource:
    """All tensors of a checkpoint folder.

    Args:
        folder: with one of ``model.safetensors[.index.json]``, ``pytorch_model.bin[.index.json]``, ``model.pt``.

    Raises:
        ModelError: no weights, a file that the index names is missing, damaged, or lacks a tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._where: dict[str, Path] = {}
        for path, expected in self.files.items():
            opened = _open(path)
            if expected is not None and (missing := sorted(expected - set(opened.shapes))):
                raise ModelError(f"'{path}' lacks tensors that the index promises: {some(missing)}")
            for name in opened.shapes:
                if name in self._where:
                    raise ModelError(f"tensor '{name}' is in '{self._where[name].name}' and again in '{path.name}'")
                self._where[name] = path
            self.shapes.update(opened.shapes)
            self.dtypes.update(opened.dtypes)
        self._opened: tuple[Path, TensorFile] | None = None
        self._touched = 0

    def get(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """A copy in memory of the tensor, or of its rows [first, last)."""
        path = self._where[name]
        if self._opened is None or self._opened[0] != path or self._touched >= REMAP_BYTES:
            self._opened = None  # unmap before mapping again
            self._opened = (path, _open(path))
            self._touched = 0
        tensor = self._opened[1].get(name, rows).clone()
        self._touched += tensor.nbytes
        return tensor


def _open(path: Path) -> TensorFile:
    return SafetensorsFile(path=path) if path.suffix == ".safetensors" else TorchFile(path=path)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Files to read, with the tensors that an index promises in each."""
    if not folder.is_dir():
        raise ModelError(f"'{folder}' is not a folder; give the folder of a released Molmo checkpoint")
    found = next((folder / name for name in _CANDIDATES if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(f"no weights in '{folder}': looked for {', '.join(_CANDIDATES)}")
    if found.suffix != ".json":
        return {found: None}
    try:
        weight_map: dict[str, str] = parse_json(found.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError("'weight_map' must name a file for each tensor")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"'{found}' is not an index of weights: {error!r}") from error
    files: dict[Path, set[str] | None] = {}
    for name, file in _items(weight_map):
        expected = files.setdefault(folder / file, set())
        assert expected is not None
        expected.add(name)
    if absent := sorted(path.name for path in files if not path.is_file()):
        raise ModelError(f"'{folder}' lacks files that '{found.name}' names: {some(absent)}")
    return files


def _items(weight_map: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Entries of an index; file names without any folder, so that none leads elsewhere."""
    for name, file in sorted(weight_map.items()):
        if Path(file).name != file:
            raise ModelError(f"the index of weights names '{file}', which is not a file of the folder itself")
        yield name, file


def some(names: list[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
