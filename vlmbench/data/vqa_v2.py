"""VQA v2 from its official files. No import beyond the standard library.

Goyal et al., "Making the V in VQA Matter", CVPR 2017; https://visualqa.org. Sizes (images / questions): train
82,783 / 443,757; val 40,504 / 214,354; test 81,434 / 447,793.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmbench.data.options import check_num_samples, check_prompt, fill, take
from vlmbench.data.vqa_files import SPLITS, ImageStore, Split, locate
from vlmbench.data.vqa_index import VQAIndex, build_index
from vlmbench.errors import InputError
from vlmbench.request import Sample

_ROOT_VARIABLE = "MOLMO_DATA_DIR"
_PROBED = 50  # some images may be missing (their rows become errors); all of the first 50 means a wrong folder


@dataclass(frozen=True, kw_only=True)
class VQAv2:
    """VQA v2 from a folder in the official layout or in Molmo's, with plain folders or the official zips.

    Args:
        root: the folder; None takes the environment variable ``MOLMO_DATA_DIR`` when the data set is opened.
        split: ``train``, ``val`` or ``test``.
        prompt: the user's text around the ``{question}``.
        num_samples: at most so many questions; None for all.
        shuffle: take them in a seeded random order instead of the file's.
        seed: of the order.
        one_question_per_image: only the first question about each image.
        answers: read the reference answers as well (the test split has none).
    """

    root: Path | None = None
    split: str = "val"
    prompt: str = "{question}"
    num_samples: int | None = None
    shuffle: bool = False
    seed: int = 0
    one_question_per_image: bool = False
    answers: bool = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"'split' must be one of {', '.join(SPLITS)} (got {self.split!r})")
        check_prompt(self.prompt)
        check_num_samples(self.num_samples)

    @property
    def name(self) -> str:
        """``vqa_v2_<split>``."""
        return f"vqa_v2_{self.split}"

    def open(self) -> VQASamples:
        """Find the files and index the questions; images stay unread.

        Raises:
            InputError: a file is missing or malformed, the files do not belong together, or nothing is in them.
        """
        files = locate(self._root(), self.split, answers=self.answers)
        index = build_index(files.questions, files.annotations)
        candidates = index.first_of_each_image() if self.one_question_per_image else range(len(index))
        rows = take(candidates, num_samples=self.num_samples, shuffle=self.shuffle, seed=self.seed)
        probed = [files.split.image_name(index.image_ids[row]) for row in rows[:_PROBED]]
        if not any(files.images.has(file_name) for file_name in probed):
            raise InputError(
                f"{files.images.name} holds none of the first {len(probed)} images of {files.questions.name} "
                f"(looked for {probed[0]} …); unpack {files.split.subset}.zip there, or put the zip beside it"
            )
        return VQASamples(index=index, rows=rows, images=files.images, split=files.split, prompt=self.prompt)

    def _root(self) -> Path:
        if self.root is not None:
            return Path(self.root).expanduser()
        if value := os.environ.get(_ROOT_VARIABLE):
            return Path(value).expanduser()
        raise InputError(
            "VQA v2: no folder given. Set dataset.root=DIR (the official files, see conf/dataset/vqa_v2.yaml) or the "
            f"environment variable {_ROOT_VARIABLE}; dataset=synthetic_vqa needs no files"
        )


class VQASamples:
    """The chosen questions, in order; ``sample_id`` is the question id."""

    def __init__(self, *, index: VQAIndex, rows: Sequence[int], images: ImageStore, split: Split, prompt: str) -> None:
        self._index = index
        self._rows = rows
        self._images = images
        self._split = split
        self._prompt = prompt

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Sample:
        row = self._rows[position]
        return Sample(
            sample_id=str(self._index.question_ids[row]),
            question=fill(self._prompt, self._index.questions[row]),
            images=(self._images.source(self._split.image_name(self._index.image_ids[row])),),
            answers=self._index.answers(row),
        )
