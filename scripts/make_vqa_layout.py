"""A small data set in the official VQA v2 layout, from photographs that matplotlib and scikit-image ship.

    python scripts/make_vqa_layout.py DIR                    # plain folders
    python scripts/make_vqa_layout.py DIR --layout zips      # the official zips
    python scripts/make_vqa_layout.py DIR --layout molmo     # what MOLMO_DATA_DIR names
    vlmbench experiment=phase1 dataset=vqa_v2 dataset.root=DIR

Questions and answers are written by hand; the counts of the ten annotators are made up, as nobody was asked.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
from vlmbench.data.vqa_files import SPLITS

LONG_SIDE = 640  # of COCO's photos
JPEG_QUALITY = 92

# photo -> (question, answers of ten annotators as "answer*count / answer*count")
PHOTOS: dict[str, list[tuple[str, str]]] = {
    "matplotlib/grace_hopper.jpg": [
        ("Is the woman wearing glasses?", "yes*10"),
        ("What is behind the woman?", "flag*8 / american flag*2"),
        ("What color is her uniform?", "black*7 / navy*2 / dark blue*1"),
        ("Is she smiling?", "no*9 / yes*1"),
        ("What is she wearing on her head?", "hat*9 / navy hat*1"),
    ],
    "skimage/astronaut.png": [
        ("What color is the suit?", "orange*10"),
        ("What is the job of this woman?", "astronaut*10"),
        ("Is the woman holding a helmet?", "yes*9 / no*1"),
        ("What is the white model in the background?", "space shuttle*6 / shuttle*3 / rocket*1"),
        ("How many people are in the picture?", "1*10"),
    ],
    "skimage/camera.png": [
        ("What is the man looking through?", "camera*10"),
        ("Is this photo in color?", "no*10"),
        ("What does the camera stand on?", "tripod*10"),
        ("What is the man standing on?", "grass*9 / field*1"),
    ],
    "skimage/chelsea.png": [
        ("What animal is this?", "cat*10"),
        ("What color are the cat's eyes?", "green*8 / yellow*2"),
        ("Is the cat asleep?", "no*10"),
        ("What color is the nose of the cat?", "pink*6 / brown*2 / orange*1 / red*1"),
    ],
    "skimage/coffee.png": [
        ("What is in the cup?", "coffee*7 / espresso*3"),
        ("What color is the saucer?", "red*8 / orange*1 / brown*1"),
        ("How many spoons are there?", "1*10"),
        ("What is the table made of?", "wood*10"),
        ("Is the cup full to the brim?", "no*10"),
    ],
    "skimage/coins.png": [
        ("How many coins are there?", "24*9 / 23*1"),
        ("What are the objects in this picture?", "coins*10"),
        ("Are all of the coins of the same size?", "no*10"),
    ],
    "skimage/rocket.jpg": [
        ("What is standing in the middle of the picture?", "rocket*10"),
        ("Is it daytime?", "no*9 / yes*1"),
        ("Has the rocket left the ground yet?", "no*10"),
        ("What color is the rocket?", "white*10"),
    ],
    "skimage/motorcycle_left.png": [
        ("What vehicle is this?", "motorcycle*9 / motorbike*1"),
        ("What color is the motorcycle?", "red*9 / red and black*1"),
        ("Is anybody riding the motorcycle?", "no*10"),
        ("Where is the motorcycle parked?", "garage*9 / in garage*1"),
        ("What is on the shelves in the background?", "boxes*10"),
    ],
    "skimage/hubble_deep_field.jpg": [
        ("What are the bright spots in this picture?", "galaxies*6 / stars*4"),
        ("What color is the background?", "black*10"),
        ("Was this photo taken from a telescope in space?", "yes*10"),
    ],
    "skimage/moon.png": [
        ("What are the round holes in the ground?", "craters*10"),
        ("Is there any water on the ground?", "no*10"),
        ("Where was this picture taken?", "moon*9 / on moon*1"),
    ],
    "skimage/retina.jpg": [
        ("What part of the body is shown here?", "eye*6 / retina*4"),
        ("What color is most of the circle?", "orange*6 / red*4"),
        ("What are the dark red lines?", "veins*5 / blood vessels*5"),
    ],
    "skimage/brick.png": [
        ("What is this wall made of?", "brick*8 / bricks*2"),
        ("Is there a window in the wall?", "no*10"),
    ],
}
FOLDERS = {"matplotlib": "mpl-data/sample_data", "skimage": "data"}
CONFIDENCE = ("yes", "yes", "yes", "maybe")


def photo_path(name: str) -> Path:
    """Where an installed package keeps that photo; the package is not imported."""
    package, file_name = name.split("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        wanted = {"skimage": "scikit-image"}.get(package, package)
        sys.exit(f"{wanted} is not installed; its photographs are needed: pip install {wanted}")
    path = Path(spec.origin).parent / FOLDERS[package] / file_name
    if not path.is_file():
        sys.exit(f"{package} no longer ships {file_name} (looked for {path})")
    return path


def as_jpeg(path: Path) -> bytes:
    """The photo as COCO would keep it: a JPEG with a long side of at most 640, grey photos grey."""
    with Image.open(path) as photo:
        photo.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        photo.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def annotators(compact: str) -> list[str]:
    """Ten answers from ``answer*count / answer*count``."""
    answers: list[str] = []
    for part in compact.split(" / "):
        answer, count = part.rsplit("*", 1)
        answers += [answer] * int(count)
    assert len(answers) == 10, compact
    return answers


def answer_type(answer: str) -> str:
    """The official three classes."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"


def build() -> tuple[dict[int, bytes], dict[str, Any], dict[str, Any]]:
    """(image id -> JPEG, questions file, annotations file)."""
    images: dict[int, bytes] = {}
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for place, (name, asked) in enumerate(PHOTOS.items(), start=1):
        images[place] = as_jpeg(photo_path(name))
        for number, (question, compact) in enumerate(asked):
            answers = annotators(compact)
            common = Counter(answers).most_common(1)[0][0]
            ids = {"image_id": place, "question_id": place * 1000 + number}
            questions.append({**ids, "question": question})
            annotations.append(
                {
                    "question_type": " ".join(question.lower().split()[:2]),
                    "multiple_choice_answer": common,
                    "answers": [
                        {"answer": a, "answer_confidence": CONFIDENCE[i % len(CONFIDENCE)], "answer_id": i + 1}
                        for i, a in enumerate(answers)
                    ],
                    "answer_type": answer_type(common),
                    **ids,
                }
            )
    head = {
        "info": {"description": "Photographs of matplotlib and scikit-image in the layout of VQA v2", "version": "2.0"},
        "license": {"name": "see the packages that ship the photographs"},
        "data_type": "mscoco",
        "data_subtype": "val2014",
    }
    return images, {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


def write(root: Path, layout: str) -> tuple[int, int]:
    """Write the files; returns the numbers of images and questions."""
    images, questions, annotations = build()
    split = SPLITS["val"]
    assert split.annotations
    assert split.annotations_zip
    photos = {f"{split.subset}/{split.image_name(image_id)}": data for image_id, data in images.items()}
    question_file = {split.questions: json.dumps(questions).encode()}
    annotation_file = {split.annotations: json.dumps(annotations).encode()}
    if layout == "zips":
        write_zip(root / split.questions_zip, question_file)
        write_zip(root / split.annotations_zip, annotation_file)
        write_zip(root / f"{split.subset}.zip", photos)
    else:
        below = root / "torch_datasets" if layout == "molmo" else root
        write_files(below / "vqa2" if layout == "molmo" else below, {**question_file, **annotation_file})
        write_files(below / "coco_images" if layout == "molmo" else below, photos)
    return len(images), len(questions["questions"])


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    """Write a zip with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder to write to; it must not exist or be empty")
    parser.add_argument("--layout", choices=("folders", "zips", "molmo"), default="folders", help="default: folders")
    options = parser.parse_args()
    if options.root.exists() and any(options.root.iterdir()):
        sys.exit(f"{options.root} is not empty; name a new folder")
    images, questions = write(options.root, options.layout)
    print(f"{options.root}: {images} photographs, {questions} questions with ten answers each")


if __name__ == "__main__":
    main()
