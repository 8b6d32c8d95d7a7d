import csv
import json
import os
import pickle
import re

import pytest
from PIL import Image

from vlmbench.data.image_folder import ImageFolder
from vlmbench.errors import InputError, SampleError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "sub/c.webp"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(path, format="JPEG")
    (folder / "notes.txt").write_text("no image")
    return folder


def all_of(dataset):
    samples = dataset.open()
    return [samples[i] for i in range(len(samples))]


def test_images_are_sorted_and_share_the_question(root):
    samples = all_of(ImageFolder(root=root, prompt="Q: {question}"))
    assert [s.sample_id for s in samples] == ["a.PNG", "b.jpg", "sub/c.webp"]
    assert {s.question for s in samples} == {"Q: What is in this picture?"}
    assert samples[2].images[0].read() == (root / "sub" / "c.webp").read_bytes()
    assert pickle.loads(pickle.dumps(samples[0])).images[0].read()
    assert len(all_of(ImageFolder(root=root, num_samples=2, shuffle=True))) == 2


def test_questions_from_jsonl_and_csv_are_the_same(root):
    rows = [
        {"image": "b.jpg", "question": "What, and why?", "answer": "sky"},
        {"image": "sub/c.webp", "question": "", "answer": ""},
        {"image": "b.jpg", "question": "Wo?", "answer": "über"},
    ]
    (root / "q.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    with (root / "q.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["question", "image", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("q.jsonl", "q.csv", root / "q.csv"):
        samples = all_of(ImageFolder(root=root, questions=name, question="Default?"))
        assert [s.sample_id for s in samples] == ["1-b.jpg", "2-sub/c.webp", "3-b.jpg"]
        assert [s.question for s in samples] == ["What, and why?", "Default?", "Wo?"]
        assert [s.answers for s in samples] == [("sky",), (), ("über",)]
    (root / "many.jsonl").write_text('{"image": "b.jpg", "answers": ["a", "b"]}')
    assert all_of(ImageFolder(root=root, questions="many.jsonl"))[0].answers == ("a", "b")


def test_corrupt_and_missing_images_wait_until_they_are_read(root):
    (root / "b.jpg").write_bytes(b"")
    (root / "q.jsonl").write_text('{"image": "b.jpg"}\n{"image": "gone.jpg"}')
    samples = all_of(ImageFolder(root=root, questions="q.jsonl"))
    assert samples[0].images[0].read() == b""
    with pytest.raises(SampleError, match=r"gone\.jpg cannot be read"):
        samples[1].images[0].read()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "sub/../../x.jpg"])
def test_images_outside_the_folder_are_refused(root, name, suffix):
    text = json.dumps({"image": name}) if suffix == "jsonl" else f"image\n{name}\n"
    (root / f"q.{suffix}").write_text(text)
    with pytest.raises(InputError, match=r"line \d of .*leads outside dataset\.root"):
        ImageFolder(root=root, questions=f"q.{suffix}").open()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no questions"),
        ('{"image": "b.jpg"}\n{"image"', "^line 2 of .*malformed JSON: Expecting ':' delimiter; a questions file"),
        ("image,question\n", "one mapping a line, or CSV where its name ends in .csv$"),
        ('{"question": "x"}', "line 1 of .*needs 'image'"),
        ("[1]", "line 1 of .*needs 'image'"),
        ('{"image": "b.jpg", "question": 3}', "must be texts"),
        ('{"image": "b.jpg", "answers": [3]}', "must be texts"),
        ('{"image": "b.jpg", "answer": 3}', "must be texts"),
    ],
)
def test_malformed_questions_are_named(root, text, message):
    (root / "q.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        ImageFolder(root=root, questions="q.jsonl").open()


def test_missing_and_empty_folders_are_named(root, tmp_path):
    with pytest.raises(InputError, match=r"Set dataset\.root=DIR"):
        ImageFolder().open()
    with pytest.raises(InputError, match=r"no folder .*gone"):
        ImageFolder(root=tmp_path / "gone").open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image in .*empty .looked for \.bmp"):
        ImageFolder(root=tmp_path / "empty").open()
    with pytest.raises(InputError, match=r"no questions file q\.csv .looked for .*photos"):
        ImageFolder(root=root, questions="q.csv").open()
    (root / "q.csv").write_bytes(b"image\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"q\.csv cannot be read as UTF-8"):
        ImageFolder(root=root, questions="q.csv").open()


def test_companions_and_hidden_files_are_no_pictures_and_are_counted(root, capsys):
    before = [sample.sample_id for sample in all_of(ImageFolder(root=root))]
    for name in ("._a.jpg", "__MACOSX/._b.jpg", ".hidden/c.png", "sub2/.d.jpg", "Thumbs.db", ".DS_Store", "a.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7Mac OS X")
    assert [sample.sample_id for sample in all_of(ImageFolder(root=root))] == before
    assert "4 files left out" in capsys.readouterr().err


def test_what_cannot_be_read_is_counted(root, capsys):
    before = [sample.sample_id for sample in all_of(ImageFolder(root=root))]
    (root / "old.jpg").symlink_to("gone.jpg")
    (root / "loop.png").symlink_to("loop.png")
    (root / "closed").mkdir()
    (root / "closed" / "d.jpg").write_bytes((root / "b.jpg").read_bytes())
    (root / "secret.jpg").touch()
    for name in ("closed", "secret.jpg"):
        (root / name).chmod(0)
    try:
        found = [sample.sample_id for sample in all_of(ImageFolder(root=root))]
    finally:
        (root / "closed").chmod(0o700)
    said = capsys.readouterr().err
    if os.geteuid() == 0:  # root may read everything
        assert found == sorted([*before, "closed/d.jpg", "secret.jpg"])
        assert (
            "2 names left out: folders and images that this user may not read, links to nothing (loop.png, …)" in said
        )
    else:
        assert found == before
        assert "4 names left out: folders and images that this user may not read, links to nothing (closed, …)" in said


@pytest.mark.parametrize("header", ["image, question", " image ,question ", "\ufeffimage,question"])
def test_blanks_around_names_of_columns_do_not_count(root, header):
    (root / "q.csv").write_text(f"{header}\nb.jpg,How many dots?\n", encoding="utf-8")
    (sample,) = all_of(ImageFolder(root=root, questions="q.csv"))
    assert sample.question == "How many dots?"


@pytest.mark.parametrize("column", ["Question", "text", "prompt", "a\x85b"])
def test_a_file_whose_questions_are_called_otherwise_is_refused(root, column):
    (root / "q.csv").write_text(f"image,{column}\na.jpg,How many?\n")
    with pytest.raises(InputError, match=rf"no column 'question' \(it has 'image', {re.escape(repr(column))}\)"):
        ImageFolder(root=root, questions="q.csv").open()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,question\nb.jpg,What, and why?\n", r"line 2 of .* more columns than the header"),
        ("image,question,question\nb.jpg,What?,Why?\n", "more than one column called 'question'"),
    ],
)
def test_a_csv_of_which_a_part_of_a_question_would_be_lost_is_refused(root, text, message):
    (root / "q.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        ImageFolder(root=root, questions="q.csv").open()


def test_rows_that_are_asked_the_default_question_are_counted(root, capsys):
    (root / "q.jsonl").write_text('{"image": "a.jpg", "text": "x"}\n{"image": "b.jpg", "question": "y"}\n')
    ImageFolder(root=root, questions="q.jsonl").open()
    assert "1 of 2 rows" in capsys.readouterr().err
