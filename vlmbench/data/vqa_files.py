"""Where the files of VQA v2 lie: the official layout and Molmo's, folders or zips. Standard library only.

Official files: https://visualqa.org/download.html, images: https://cocodataset.org/#download. Molmo keeps them under
``$MOLMO_DATA_DIR/torch_datasets``: JSON in ``vqa2``, images in ``coco_images``, zips in ``downloads``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from vlmbench.data.archive import ZipArchive, read_image_file
from vlmbench.errors import InputError
from vlmbench.request import ImageSource

_VQA_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_COCO_URL = "http://images.cocodataset.org/zips"


@dataclass(frozen=True, kw_only=True)
class Split:
    """File names of one split.

    Args:
        subset: of COCO, which names the folder, the zip and the images.
        questions, annotations: JSON files; the test split has no annotations.
        questions_zip, annotations_zip: the official zips that hold them.
    """

    subset: str
    questions: str
    questions_zip: str
    annotations: str | None = None
    annotations_zip: str | None = None

    def image_name(self, image_id: int) -> str:
        """File name of an image: ``COCO_val2014_000000000042.jpg``."""
        return f"COCO_{self.subset}_{image_id:012d}.jpg"


def _labelled(subset: str, part: str) -> Split:
    return Split(
        subset=subset,
        questions=f"v2_OpenEnded_mscoco_{subset}_questions.json",
        questions_zip=f"v2_Questions_{part}_mscoco.zip",
        annotations=f"v2_mscoco_{subset}_annotations.json",
        annotations_zip=f"v2_Annotations_{part}_mscoco.zip",
    )


SPLITS = {
    "train": _labelled("train2014", "Train"),
    "val": _labelled("val2014", "Val"),
    "test": Split(
        subset="test2015",
        questions="v2_OpenEnded_mscoco_test2015_questions.json",
        questions_zip="v2_Questions_Test_mscoco.zip",
    ),
}

# Folders below the root, in the order in which they are looked at. A file wins over a zip: unpacking was on purpose.
_JSON_FOLDERS = ("", "Questions", "Annotations", "vqa2", "torch_datasets/vqa2")
_ZIP_FOLDERS = ("", "Questions", "Annotations", "downloads", "torch_datasets/downloads")
_IMAGE_FOLDERS = ("", "images", "Images/mscoco", "coco_images", "torch_datasets/coco_images")
_IMAGE_ZIP_FOLDERS = ("", "images", "Images/mscoco", "coco_images", "downloads", "torch_datasets/downloads")


@dataclass(frozen=True, kw_only=True)
class JsonFile:
    """A JSON file, plain or in a zip."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        """What error messages call it."""
        return f"{self.path}!{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes.

        Raises:
            InputError: it cannot be opened.
        """
        if self.member is None:
            try:
                stream = self.path.open("rb")
            except OSError as error:
                raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
            with stream:
                yield stream
            return
        archive = ZipArchive(self.path)
        try:
            with archive.stream(self.member) as unpacked:
                yield unpacked
        finally:
            archive.close()


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """The folder or the zip that holds the images of a split."""

    folder: Path | None = None
    archive: ZipArchive | None = None

    @property
    def name(self) -> str:
        """What error messages call it."""
        return str(self.folder) if self.folder else str(self.archive.path) if self.archive else "nothing"

    def source(self, file_name: str) -> ImageSource:
        """The image of that file name, unread."""
        if self.folder is not None:
            path = self.folder / file_name
            return ImageSource(name=str(path), read=partial(read_image_file, path))
        assert self.archive is not None
        return ImageSource(name=f"{self.archive.path}!{file_name}", read=partial(self.archive.read_image, file_name))

    def has(self, file_name: str) -> bool:
        """True where the image is there; its content is not looked at."""
        if self.folder is not None:
            return (self.folder / file_name).is_file()
        assert self.archive is not None
        return self.archive.find(file_name) is not None


@dataclass(frozen=True, kw_only=True)
class VQAFiles:
    """Everything a split needs, found."""

    split: Split
    questions: JsonFile
    annotations: JsonFile | None
    images: ImageStore


def locate(root: Path, split_name: str, *, answers: bool) -> VQAFiles:
    """Find the files of a split below a folder.

    Args:
        root: the folder: official layout, or what ``MOLMO_DATA_DIR`` names.
        split_name: a key of :data:`SPLITS`.
        answers: whether annotations are wanted (the test split has none).

    Raises:
        InputError: the folder or files are missing; the message lists every path looked for and where to get them.
    """
    if not root.is_dir():
        raise InputError(f"VQA v2: no folder {root}. Set dataset.root to the folder that holds the official files")
    split = SPLITS[split_name]
    problems: list[str] = []
    questions = _find_json(root, split.questions, split.questions_zip, problems)
    annotations = None
    if answers and split.annotations and split.annotations_zip:
        annotations = _find_json(root, split.annotations, split.annotations_zip, problems)
        if annotations is None:
            problems[-1] += ", or do without answers: dataset.answers=false"
    images = _find_images(root, split.subset, problems)
    if questions is None or images is None or problems:
        raise InputError(f"VQA v2 {split_name} is not complete in {root}. " + ". ".join(problems))
    return VQAFiles(split=split, questions=questions, annotations=annotations, images=images)


def _below(folders: tuple[str, ...], name: str) -> list[str]:
    return [f"{folder}/{name}" if folder else name for folder in folders]


def _find_json(root: Path, name: str, zip_name: str, problems: list[str]) -> JsonFile | None:
    plain, zips = _below(_JSON_FOLDERS, name), _below(_ZIP_FOLDERS, zip_name)
    for relative in plain:
        if (root / relative).is_file():
            return JsonFile(path=root / relative)
    for relative in zips:
        if (path := root / relative).is_file():
            archive = ZipArchive(path)
            try:
                if archive.find(name) is None:
                    raise InputError(
                        f"{path} does not hold {name} (it holds {', '.join(list(archive.basenames())[:5])})"
                    )
            finally:
                archive.close()
            return JsonFile(path=path, member=name)
    problems.append(f"No {name}: looked for {', '.join(plain + zips)}; get it from {_VQA_URL}/{zip_name}")
    return None


def _find_images(root: Path, subset: str, problems: list[str]) -> ImageStore | None:
    plain, zips = _below(_IMAGE_FOLDERS, subset), _below(_IMAGE_ZIP_FOLDERS, f"{subset}.zip")
    for relative in plain:
        if (root / relative).is_dir():
            return ImageStore(folder=root / relative)
    for relative in zips:
        if (path := root / relative).is_file():
            return ImageStore(archive=ZipArchive(path))
    looked = [f"{relative}/" for relative in plain] + zips
    problems.append(f"No images: looked for {', '.join(looked)}; get them from {_COCO_URL}/{subset}.zip")
    return None
