"""Any folder of images, with one question for all or a file of questions. Standard library only."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmbench.data.archive import is_unsafe, read_image_file
from vlmbench.data.options import check_num_samples, check_prompt, fill, take
from vlmbench.errors import InputError
from vlmbench.request import ImageSource, Sample
from vlmbench.text import count, parse_json, say

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Images of a folder and its subfolders, sorted by path, or in the order of a questions file.

    Names that begin with a dot and what lies in ``__MACOSX`` are left out.

    Args:
        root: the folder.
        questions: JSONL (``{"image", "question", "answer" or "answers"}`` a line) or CSV (a header with the same
            names) below ``root`` or anywhere; images are named relative to ``root``, and those that no line names are
            not asked. None asks ``question`` of each image.
        question: asked where no questions file says another.
        prompt: the user's text around the ``{question}``.
        num_samples: at most so many; None for all.
        shuffle: take them in a seeded random order.
        seed: of the order.
    """

    root: Path | None = None
    questions: Path | None = None
    question: str = "What is in this picture?"
    prompt: str = "{question}"
    num_samples: int | None = None
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        check_num_samples(self.num_samples)

    @property
    def name(self) -> str:
        """``image_folder_<folder name>``."""
        return f"image_folder_{Path(self.root).name}" if self.root else "image_folder"

    def open(self) -> FolderSamples:
        """List the images or read the questions file; images stay unread.

        Raises:
            InputError: no folder, no image in it, or a questions file that is missing, malformed or empty.
        """
        if self.root is None:
            raise InputError("image folder: no folder given. Set dataset.root=DIR to a folder of images")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(f"image folder: no folder {root}. Set dataset.root to a folder of images")
        if not os.access(root, os.R_OK | os.X_OK):
            raise InputError(f"image folder: {root} may not be read by this user. Set dataset.root to one that may")
        entries = list(self._asked(root) if self.questions else self._found(root))
        rows = take(range(len(entries)), num_samples=self.num_samples, shuffle=self.shuffle, seed=self.seed)
        return FolderSamples(root=root, entries=entries, rows=rows, prompt=self.prompt)

    def _found(self, root: Path) -> Iterator[_Entry]:
        found, unreadable = _images(root)
        paths = [path for path in found if not _is_hidden(path.relative_to(root))]
        if left := count(len(found) - len(paths), "file") if len(found) > len(paths) else "":
            say(f"image folder: {left} left out: in hidden folders, or companions of macOS (names like ._a.png)")
        if unreadable:
            first = f"{unreadable[0].relative_to(root)}{', …' if len(unreadable) > 1 else ''}"
            say(
                f"image folder: {count(len(unreadable), 'name')} left out: folders and images that this user may not "
                f"read, links to nothing ({first})"
            )
        if not paths:
            raise InputError(f"image folder: no image in {root} (looked for {', '.join(sorted(SUFFIXES))})")
        for path in paths:
            relative = path.relative_to(root).as_posix()
            yield _Entry(sample_id=relative, image=relative, question=self.question)

    def _asked(self, root: Path) -> Iterator[_Entry]:
        assert self.questions is not None
        given = Path(self.questions).expanduser()
        path = root / given  # an absolute path stays itself
        if not path.is_file():
            path = given
        if not path.is_file():
            raise InputError(f"image folder: no questions file {given} (looked for {root / given}, {given})")
        number = unasked = 0
        for number, (where, row) in enumerate(_rows(path), start=1):
            yield _entry(row, where=where, number=number, default=self.question)
            unasked += not row.get("question")
        if not number:
            raise InputError(f"{path} holds no questions")
        if unasked:
            say(f"image folder: {unasked:,} of {number:,} rows of {path} have no 'question': asked {self.question!r}")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    sample_id: str
    image: str
    question: str
    answers: tuple[str, ...] = ()


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for error messages, row) of a JSONL or CSV file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(stream)
                reader.fieldnames = _header(reader.fieldnames or (), path)
                for row in reader:
                    where = f"line {reader.line_num} of {path}"
                    if any(row.get(None) or ()):  # where DictReader puts what has no name
                        raise InputError(
                            f"{where} has more columns than the header names (got {[*row.values()]!r:.200})\n"
                            "put a text that holds a comma between double quotes"
                        )
                    yield where, row
                return
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"line {number} of {path}"
                    try:
                        yield where, parse_json(line)
                    except ValueError as error:  # whose place counts the lines of one line
                        why = getattr(error, "msg", error)
                        raise InputError(
                            f"{where} is malformed JSON: {why}; a questions file is JSONL, one mapping a line, or CSV "
                            "where its name ends in .csv"
                        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as UTF-8 JSONL or CSV: {error}") from error


def _images(root: Path) -> tuple[list[Path], list[Path]]:
    """All images below a folder, and what would be images or may hold some and cannot be read; each sorted."""
    images: list[Path] = []
    unreadable: list[Path] = []
    for folder, _, names in os.walk(root, onerror=lambda error: unreadable.append(Path(error.filename))):
        for path in (Path(folder, name) for name in names if Path(name).suffix.lower() in SUFFIXES):
            if os.access(path, os.R_OK) and path.is_file():
                images.append(path)
            else:
                unreadable.append(path)
    return sorted(images), sorted(unreadable)


def _is_hidden(relative: Path) -> bool:
    """Whether a name, or a folder above it, is hidden, or macOS put it beside the real one."""
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.parts)


def _header(names: Sequence[str], path: Path) -> list[str]:
    """The column names of a CSV file, blanks around them cut off.

    Raises:
        InputError: two have one name; or none is called ``question`` and one is called otherwise: it may be meant.
    """
    columns = [name.strip() for name in names]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"{path} has more than one column called {', '.join(map(repr, twice))}\nname each otherwise")
    others = [name for name in columns if name not in ("image", "answer", "answers")]
    if columns and "question" not in columns and others:
        raise InputError(
            f"{path} has no column 'question' (it has {', '.join(f'{name!r:.40}' for name in columns[:8])})\n"
            "call the column of questions 'question', or leave only 'image' to ask dataset.question of every image"
        )
    return columns


def _entry(row: Any, *, where: str, number: int, default: str) -> _Entry:
    image = row.get("image") if isinstance(row, dict) else None
    if not isinstance(image, str) or not image:
        raise InputError(f"{where} needs 'image', a file name (got {row!r:.200})")
    if is_unsafe(image):
        raise InputError(f"{where}: image {image!r} leads outside dataset.root; give a name relative to it")
    question = row.get("question") or default
    answers = row.get("answers") or row.get("answer") or ()
    answers = (answers,) if isinstance(answers, str) else answers
    texts = [question, *answers] if isinstance(answers, list | tuple) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where}: 'question' and 'answer' must be texts, 'answers' a list of texts (got {row!r:.200})"
        )
    return _Entry(sample_id=f"{number}-{image}", image=image, question=question, answers=tuple(answers))


class FolderSamples:
    """The chosen images or questions; ``sample_id`` is the image's relative path, with its row where rows name it."""

    def __init__(self, *, root: Path, entries: Sequence[_Entry], rows: Sequence[int], prompt: str) -> None:
        self._root = root
        self._entries = entries
        self._rows = rows
        self._prompt = prompt

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Sample:
        entry = self._entries[self._rows[position]]
        path = self._root / entry.image
        return Sample(
            sample_id=entry.sample_id,
            question=fill(self._prompt, entry.question),
            images=(ImageSource(name=str(path), read=partial(read_image_file, path)),),
            answers=entry.answers,
        )
