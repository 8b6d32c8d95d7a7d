"""Time and memory to index VQA v2, on files of the official structure and full size (made here, not downloaded).

    python benchmarks/vqa_index.py                     # validation split: 214,354 questions, ten answers each
    python benchmarks/vqa_index.py --zipped            # the same from the official zips
    python benchmarks/vqa_index.py --root DIR          # the real files, where they lie

Each index is built in a fresh process, whose peak resident memory counts the interpreter as well.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

from vlmbench.data.synthetic_text import question_and_answers
from vlmbench.data.vqa_files import SPLITS

QUESTIONS = 214_354
QUESTIONS_AN_IMAGE = 5.29
RARE_SHARE = 0.05  # of answers that nobody else gave

# Run in a process of its own: prints one JSON line.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from vlmbench.data.vqa_v2 import VQAv2
to_mib = 2**20 if sys.platform == "darwin" else 2**10
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / to_mib
start, cpu = time.perf_counter(), time.process_time()
samples = VQAv2(root=Path(sys.argv[1]), answers=sys.argv[2] == "True").open()
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / to_mib
start = time.perf_counter()
step = max(len(samples) // 10_000, 1)
taken = [len(samples[i].answers) for i in range(0, len(samples), step)]
access = (time.perf_counter() - start) / len(taken)
print(json.dumps({"questions": len(samples), "wall_s": wall, "cpu_s": cpu, "before_mib": before, "peak_mib": peak,
                  "access_us": access * 1e6, "answers": max(taken)}))
"""

CONFIDENCE = ("yes", "maybe", "no")


def entries(number: int, rng: random.Random) -> Any:
    """(question entry, annotation entry) with all fields of the official files."""
    for index in range(number):
        image_id = 42 + int(index / QUESTIONS_AN_IMAGE) * 14
        question_id = image_id * 1000 + index % 1000
        question, answers = question_and_answers(rng)
        # The real files have some 100,000 distinct answers; a rare one costs memory that a common one does not.
        answers = tuple(f"{a} {rng.randrange(10**7)}" if rng.random() < RARE_SHARE else a for a in answers)
        common = max(set(answers), key=answers.count)
        yield (
            {"image_id": image_id, "question": question, "question_id": question_id},
            {
                "question_type": " ".join(question.split()[:3]).lower(),
                "multiple_choice_answer": common,
                "answers": [
                    {"answer": answer, "answer_confidence": rng.choice(CONFIDENCE), "answer_id": place + 1}
                    for place, answer in enumerate(answers)
                ],
                "image_id": image_id,
                "answer_type": "yes/no" if common in ("yes", "no") else "other",
                "question_id": question_id,
            },
        )


def write(root: Path, number: int) -> None:
    """The two JSON files of the validation split, streamed, and an image folder with one (empty) image file."""
    split = SPLITS["val"]
    assert split.annotations
    head = {"info": {"description": "full-size stand-in", "version": "2.0"}, "license": {"name": "none"}}
    with (root / split.questions).open("w") as questions, (root / split.annotations).open("w") as annotations:
        for stream, key in ((questions, "questions"), (annotations, "annotations")):
            stream.write(json.dumps(head)[:-1] + f', "data_subtype": "val2014", "{key}": [')
        for index, (question, annotation) in enumerate(entries(number, random.Random(0))):
            _item(questions, question, index)
            _item(annotations, annotation, index)
        for stream in (questions, annotations):
            stream.write('], "data_type": "mscoco"}')
    (root / split.subset).mkdir()
    (root / split.subset / split.image_name(42)).touch()


def _item(stream: IO[str], item: dict[str, Any], index: int) -> None:
    stream.write((", " if index else "") + json.dumps(item))


def pack(root: Path) -> None:
    """Replace the JSON files by the official zips."""
    split = SPLITS["val"]
    for name, zip_name in ((split.questions, split.questions_zip), (split.annotations, split.annotations_zip)):
        assert name
        assert zip_name
        with zipfile.ZipFile(root / zip_name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(root / name, name)
        (root / name).unlink()


def measure(root: Path, *, answers: bool) -> dict[str, float]:
    """Figures of one index built in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), str(answers)], check=True, capture_output=True, text=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="how many (default: %(default)s)")
    parser.add_argument("--zipped", action="store_true", help="keep the JSON in the official zips")
    parser.add_argument("--root", type=Path, help="a folder with the real files, instead of made ones")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes per row (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        if options.root is None:
            write(root, options.questions)
            size = sum(path.stat().st_size for path in root.glob("*.json")) / 1e6
            print(f"made {options.questions:,} questions: {size:.0f} MB of JSON")
            if options.zipped:
                pack(root)
        print(f"{'':16}{'questions':>10}{'wall s':>9}{'CPU s':>8}{'peak MiB':>10}{'of it before':>14}{'us/sample':>11}")
        for answers in (True, False):
            for _ in range(options.repeats):
                row = measure(root, answers=answers)
                print(
                    f"{'with answers' if answers else 'without answers':16}{row['questions']:>10,}{row['wall_s']:>9.2f}"
                    f"{row['cpu_s']:>8.2f}{row['peak_mib']:>10.0f}{row['before_mib']:>14.0f}{row['access_us']:>11.1f}"
                )


if __name__ == "__main__":
    main()
