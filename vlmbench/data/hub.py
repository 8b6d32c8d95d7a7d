"""Any data set that the ``datasets`` library can open: a hub id, a folder of Parquet files, or a saved data set.

``datasets`` is imported when the data set is opened, never by the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmbench.data.archive import read_image_file
from vlmbench.data.options import check_num_samples, check_prompt, fill, take
from vlmbench.errors import InputError, SampleError, first_line
from vlmbench.request import ImageSource, Sample


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """A data set with an image column and a question column.

    Args:
        path: hub id (``lmms-lab/VQAv2``), a folder written by ``save_to_disk``, or a folder of data files.
        config_name: of a hub data set that has several configurations.
        split: which split; a saved folder of one split alone ignores it.
        revision: branch, tag or commit of the hub repository; None for its main branch.
        image_column: holds an image or a list of images.
        question_column: holds a text.
        answers_column: holds a text, a list of texts or a list of ``{answer}``; None or absent for no answers.
        id_column: names the sample, unlike for any two; None or absent takes the row number.
        prompt: the user's text around the ``{question}``.
        num_samples: at most so many; None for all.
        shuffle: take them in a seeded random order.
        seed: of the order.
    """

    path: str | None = None
    config_name: str | None = None
    split: str = "validation"
    revision: str | None = None
    image_column: str = "image"
    question_column: str = "question"
    answers_column: str | None = "answers"
    id_column: str | None = "question_id"
    prompt: str = "{question}"
    num_samples: int | None = None
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        check_num_samples(self.num_samples)

    @property
    def name(self) -> str:
        """``hub_<last part of the path>_<split>``."""
        return f"hub_{Path(self.path).name}_{self.split}" if self.path else "hub"

    def open(self) -> HubSamples:
        """Open it; images stay encoded and unread.

        Raises:
            InputError: it cannot be found or reached, has no such split or column, or is empty.
        """
        if self.path is None:
            raise InputError("data set: set dataset.path to a hub id, or to a folder written by save_to_disk")
        table = self._load(self.path)
        if not len(table):
            raise InputError(f"data set {self.path}, split {self.split}, is empty")
        self._check_columns(table)
        rows = take(range(len(table)), num_samples=self.num_samples, shuffle=self.shuffle, seed=self.seed)
        samples = HubSamples(dataset=self, table=table, rows=rows)
        samples[0]  # all rows have one type: what cannot be read as answers shows now
        return samples

    def _load(self, path: str) -> Any:
        """The split as a ``datasets.Dataset``."""
        folder = Path(path).expanduser()
        if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            return self._saved(folder)
        import datasets

        if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~"))):
            raise InputError(f"data set: no folder {folder}. Set dataset.path to a hub id or to an existing folder")
        try:
            return datasets.load_dataset(
                str(folder) if folder.is_dir() else path, self.config_name, split=self.split, revision=self.revision
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise InputError(
                f"data set {path}, split {self.split}, cannot be loaded: {first_line(error)}\n"
                "Without network, set dataset.path to a folder written by save_to_disk where there is one (or fill the "
                "cache there, HF_HOME, and set HF_HUB_OFFLINE=1)"
            ) from error

    def _saved(self, folder: Path) -> Any:
        import datasets

        try:
            loaded = datasets.load_from_disk(str(folder))
        except IndexError as error:  # what `datasets` says of a data set that was saved without rows
            raise InputError(f"saved data set {folder} is empty") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"saved data set {folder} cannot be read: {error}") from error
        if isinstance(loaded, datasets.DatasetDict):
            if self.split not in loaded:
                raise InputError(f"saved data set {folder} has no split '{self.split}' (it has {', '.join(loaded)})")
            return loaded[self.split]
        return loaded

    def _check_columns(self, table: Any) -> None:
        have = ", ".join(table.column_names)
        for key in ("image_column", "question_column"):
            if (column := getattr(self, key)) not in table.column_names:
                raise InputError(f"data set {self.path} has no column '{column}' (it has {have}); set dataset.{key}")
        schema = table.data.schema
        if str(schema.field(self.question_column).type) not in ("string", "large_string", "string_view"):
            raise InputError(f"column '{self.question_column}' of data set {self.path} must hold texts")
        if empty := table.data.column(self.question_column).null_count:
            raise InputError(f"column '{self.question_column}' of data set {self.path} has {empty} empty rows")
        if self.id_column in table.column_names and len(set(table[self.id_column][:])) != len(table):
            raise InputError(
                f"column '{self.id_column}' of data set {self.path} holds the same id more than once; "
                "set dataset.id_column to another column, or to null for row numbers"
            )


class HubSamples:
    """The chosen rows; images are read from the memory-mapped table when they are asked for, still encoded."""

    def __init__(self, *, dataset: HubDataset, table: Any, rows: Sequence[int]) -> None:
        wanted = (dataset.question_column, dataset.answers_column, dataset.id_column)
        self._dataset = dataset
        self._rows = rows
        # The Arrow format hands out what is stored, {bytes, path}: no image is decoded here.
        arrow = table.with_format("arrow")
        self._texts = arrow.select_columns([column for column in wanted if column in table.column_names])
        self._images = arrow.select_columns([dataset.image_column])
        self._many = "list" in str(table.data.schema.field(dataset.image_column).type).split("<", maxsplit=1)[0]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Sample:
        row = self._rows[position]
        texts = self._texts[row].to_pylist()[0]
        stored = self._images[row].column(0)[0]
        number = 1 if not self._many else len(stored) if stored.is_valid else 0  # null is an empty list
        name = f"{self._dataset.path}[{row}].{self._dataset.image_column}"
        return Sample(
            sample_id=str(texts.get(self._dataset.id_column, row)),
            question=fill(self._dataset.prompt, texts[self._dataset.question_column]),
            images=tuple(
                ImageSource(name=f"{name}[{i}]" if self._many else name, read=partial(self._read, row, i, name))
                for i in range(number)
            ),
            answers=tuple(_answers(texts.get(self._dataset.answers_column), self._dataset)),
        )

    def _read(self, row: int, number: int, name: str) -> bytes:
        stored = self._images[row].column(0)[0].as_py()
        image = stored[number] if self._many else stored
        if isinstance(image, dict):
            if image.get("bytes"):
                return bytes(image["bytes"])
            image = image.get("path")
        if isinstance(image, bytes):
            return image
        if isinstance(image, str) and Path(image).is_absolute():
            return read_image_file(Path(image))
        raise SampleError(f"image {name} holds no encoded image (path {image!r})")


def _answers(value: Any, dataset: HubDataset) -> Iterator[str]:
    """Texts from any of the shapes that VQA data sets use."""
    if value is None:
        return
    if isinstance(value, dict):  # a struct of lists: {"answer": [...], "answer_id": [...]}
        value = value.get("answer", value)
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [value]:
        text = item.get("answer") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise InputError(
                f"column '{dataset.answers_column}' of data set {dataset.path} must hold a text, a list of texts or a "
                f"list of {{answer}} (got {value!r:.100}); set dataset.answers_column, or null for no answers"
            )
        yield text
