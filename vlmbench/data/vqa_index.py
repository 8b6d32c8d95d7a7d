"""The questions and answers of VQA v2 in memory, compactly. Standard library only.

214,354 questions with ten answers each are 2.1 million dictionaries in the JSON; here they are one list of strings,
one list of distinct answers, and arrays of numbers. ``benchmarks/vqa_index.py`` measures time and memory.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from vlmbench.data.json_stream import stream_items
from vlmbench.data.vqa_files import JsonFile
from vlmbench.errors import InputError

_NAMED = 3  # how many ids a message names


@dataclass(kw_only=True)
class VQAIndex:
    """Row i is the i-th question of the file.

    Args:
        question_ids, image_ids: one number a row.
        questions: one text a row, verbatim.
        answer_start, answer_count: where the row's answers lie in ``answer_codes``; count 0 for none.
        answer_codes: indices into ``distinct_answers``, all rows one after another.
        distinct_answers: every answer text once.
    """

    question_ids: array[int] = field(default_factory=lambda: array("q"))
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    questions: list[str] = field(default_factory=list)
    answer_start: array[int] = field(default_factory=lambda: array("q"))
    answer_count: array[int] = field(default_factory=lambda: array("H"))
    answer_codes: array[int] = field(default_factory=lambda: array("i"))
    distinct_answers: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.questions)

    def answers(self, row: int) -> tuple[str, ...]:
        """The annotators' answers of a row, in file order."""
        if not self.answer_start:
            return ()
        start = self.answer_start[row]
        codes = self.answer_codes[start : start + self.answer_count[row]]
        return tuple(self.distinct_answers[code] for code in codes)

    def first_of_each_image(self) -> Iterator[int]:
        """The rows that are the first question about their image, in file order."""
        seen: set[int] = set()
        for row, image_id in enumerate(self.image_ids):
            if image_id not in seen:
                seen.add(image_id)
                yield row


def build_index(questions: JsonFile, annotations: JsonFile | None) -> VQAIndex:
    """Read both files once.

    Raises:
        InputError: malformed JSON, a field missing or of another type, a question id twice, no question at all, or
            files that do not belong together (a question without annotation, another image for the same question).
    """
    index = VQAIndex()
    rows = _read_questions(questions, index)
    if not rows:
        raise InputError(f"{questions.name} holds no questions")
    if annotations is not None:
        _read_annotations(annotations, questions, index, rows)
    return index


def _read_questions(file: JsonFile, index: VQAIndex) -> dict[int, int]:
    rows: dict[int, int] = {}
    with file.open() as stream:
        for number, item in enumerate(stream_items(stream, "questions", file.name)):
            try:
                question_id, image_id, text = item["question_id"], item["image_id"], item["question"]
                index.question_ids.append(question_id)
                index.image_ids.append(image_id)
            except (KeyError, TypeError, OverflowError) as error:
                wanted = "whole numbers question_id and image_id, and a text question"
                raise InputError(f"questions[{number}] of {file.name} needs {wanted} (got {item!r:.200})") from error
            if not isinstance(text, str):
                raise InputError(f"questions[{number}].question of {file.name} must be a text (got {text!r:.100})")
            if rows.setdefault(question_id, number) != number:
                raise InputError(f"{file.name} has question_id {question_id} twice")
            index.questions.append(text)
    return rows


def _read_annotations(file: JsonFile, questions: JsonFile, index: VQAIndex, rows: dict[int, int]) -> None:
    index.answer_start = array("q", [-1]) * len(rows)
    index.answer_count = array("H", [0]) * len(rows)
    codes = index.answer_codes
    code_of: defaultdict[str, int] = defaultdict(count().__next__)  # an answer not met before gets the next number
    with file.open() as stream:
        for number, item in enumerate(stream_items(stream, "annotations", file.name)):
            try:
                row = rows.get(item["question_id"])
                if row is None:
                    continue  # a shortened questions file with the full annotations is fine
                image_id, start = item["image_id"], len(codes)
                codes.extend([code_of[a["answer"]] for a in item["answers"]])
                index.answer_count[row] = len(codes) - start
            except (KeyError, TypeError, OverflowError) as error:
                wanted = "question_id, image_id and answers, a list of {answer}"
                raise InputError(f"annotations[{number}] of {file.name} needs {wanted} (got {item!r:.200})") from error
            if image_id != index.image_ids[row]:
                raise InputError(
                    f"{file.name} and {questions.name} do not belong together: question {index.question_ids[row]} is "
                    f"about image {image_id} in the one and about image {index.image_ids[row]} in the other"
                )
            index.answer_start[row] = start
    index.distinct_answers = list(code_of)
    if any(not isinstance(text, str) for text in index.distinct_answers):
        raise InputError(f"{file.name} has an answer that is not a text")
    if bare := [index.question_ids[row] for row, start in enumerate(index.answer_start) if start < 0]:
        raise InputError(
            f"{file.name} and {questions.name} do not belong together: {len(bare)} of {len(rows)} questions have no "
            f"annotation (question_id {', '.join(map(str, bare[:_NAMED]))} …). Take both from the same split"
        )
