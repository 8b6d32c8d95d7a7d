import io
import json
import pickle
import shutil
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmbench.data.vqa_files import SPLITS, JsonFile
from vlmbench.data.vqa_index import build_index
from vlmbench.data.vqa_v2 import VQAv2
from vlmbench.errors import InputError, SampleError

QUESTIONS, ANNOTATIONS = SPLITS["val"].questions, SPLITS["val"].annotations
LAYOUTS = ("folders", "zips", "molmo", "molmo_zips")


def digest(samples):
    return [(s.sample_id, s.question, s.answers, s.images[0].read()) for s in (samples[i] for i in range(len(samples)))]


@pytest.fixture
def root(layouts, tmp_path):
    """A copy of the plain folders that a test may spoil."""
    return shutil.copytree(layouts["folders"], tmp_path / "vqa")


def rewrite(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(layouts, layout):
    samples = VQAv2(root=layouts[layout]).open()
    assert len(samples) == 46
    assert digest(samples) == digest(VQAv2(root=layouts["folders"]).open())
    first = samples[0]
    assert first.sample_id == "1000"
    assert first.question == "Is the woman wearing glasses?"
    assert first.answers == ("yes",) * 10
    with Image.open(io.BytesIO(first.images[0].read())) as photo:
        assert photo.format == "JPEG"
        assert photo.size == (512, 600)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_molmo_variable_is_read_when_opened(layouts, layout, monkeypatch):
    monkeypatch.delenv("MOLMO_DATA_DIR", raising=False)
    dataset = VQAv2()
    with pytest.raises(InputError, match=r"Set dataset\.root=DIR .* MOLMO_DATA_DIR"):
        dataset.open()
    monkeypatch.setenv("MOLMO_DATA_DIR", str(layouts[layout]))
    assert len(dataset.open()) == 46


def test_torch_datasets_itself_is_a_root_too(layouts):
    for layout in ("molmo", "molmo_zips"):
        assert len(VQAv2(root=layouts[layout] / "torch_datasets").open()) == 46


def test_a_folder_wins_over_a_zip_and_parts_may_be_mixed(layouts, root):
    shutil.rmtree(root / "val2014")
    shutil.copy(layouts["zips"] / "val2014.zip", root)
    assert VQAv2(root=root).open()[0].images[0].name.endswith("val2014.zip!COCO_val2014_000000000001.jpg")
    shutil.copytree(layouts["folders"] / "val2014", root / "images" / "val2014")
    assert "images" in VQAv2(root=root).open()[0].images[0].name


def test_missing_files_are_all_named_with_where_to_get_them(tmp_path):
    with pytest.raises(InputError) as caught:
        VQAv2(root=tmp_path).open()
    message = str(caught.value)
    for expected in (
        str(tmp_path),
        f"torch_datasets/vqa2/{QUESTIONS}",
        "torch_datasets/downloads/v2_Questions_Val_mscoco.zip",
        f"Annotations/{ANNOTATIONS}",
        "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Questions_Val_mscoco.zip",
        "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_Val_mscoco.zip",
        "dataset.answers=false",
        "torch_datasets/coco_images/val2014/",
        "torch_datasets/downloads/val2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
    ):
        assert expected in message
    with pytest.raises(InputError, match=r"no folder .*gone"):
        VQAv2(root=tmp_path / "gone").open()


def test_answers_are_optional(root):
    (root / ANNOTATIONS).unlink()
    with pytest.raises(InputError, match=r"dataset\.answers=false"):
        VQAv2(root=root).open()
    assert VQAv2(root=root, answers=False).open()[0].answers == ()


def test_the_test_split_has_no_answers(root):
    (root / QUESTIONS).rename(root / SPLITS["test"].questions)
    (root / "val2014").rename(root / "test2015")
    for image in (root / "test2015").iterdir():
        image.rename(image.with_name(image.name.replace("val2014", "test2015")))
    samples = VQAv2(root=root, split="test").open()
    assert len(samples) == 46
    assert samples[3].answers == ()
    assert samples[3].images[0].read()


def test_choice_of_questions(layouts):
    root = layouts["folders"]
    ten = VQAv2(root=root, num_samples=10, shuffle=True, seed=1).open()
    twenty = VQAv2(root=root, num_samples=20, shuffle=True, seed=1).open()
    ids = [ten[i].sample_id for i in range(10)]
    assert ids == [twenty[i].sample_id for i in range(10)] != sorted(ids)
    assert len(VQAv2(root=root, num_samples=1000).open()) == 46
    single = VQAv2(root=root, one_question_per_image=True).open()
    assert Counter(single[i].images[0].name for i in range(len(single))).most_common(1)[0][1] == 1
    assert len(single) == 12
    prompted = VQAv2(root=root, prompt="vqa2: {question}").open()
    assert prompted[0].question == "vqa2: Is the woman wearing glasses?"
    assert digest(pickle.loads(pickle.dumps(ten))) == digest(ten)


def test_a_corrupt_or_missing_image_waits_until_it_is_read(root):
    (root / "val2014" / "COCO_val2014_000000000001.jpg").write_bytes(b"no picture")
    (root / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    samples = VQAv2(root=root).open()
    assert samples[0].images[0].read() == b"no picture"
    with pytest.raises(SampleError, match=r"COCO_val2014_000000000002\.jpg cannot be read"):
        samples[5].images[0].read()


def test_an_image_folder_without_the_images_is_refused(root):
    for image in (root / "val2014").iterdir():
        image.unlink()
    with pytest.raises(InputError, match=r"holds none of the first 46 images .*COCO_val2014_000000000001\.jpg"):
        VQAv2(root=root).open()


@pytest.mark.parametrize("name", [QUESTIONS, ANNOTATIONS])
def test_malformed_json_is_named(root, name):
    text = (root / name).read_text()
    (root / name).write_text(text[:-400])
    with pytest.raises(InputError, match=rf"{name} ends in the middle"):
        VQAv2(root=root).open()
    (root / name).write_text(text.replace('"question_id":', '"question_id"', 2))
    with pytest.raises(InputError, match=rf"{name} is malformed JSON: Expecting ':'"):
        VQAv2(root=root).open()


def spoil(name, change, message):
    return pytest.param(name, change, message, id=message[:30])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        spoil(QUESTIONS, lambda d: d.update(questions=[]), "holds no questions"),
        spoil(QUESTIONS, lambda d: d["questions"][3].pop("image_id"), r"questions\[3\] of .* needs"),
        spoil(QUESTIONS, lambda d: d["questions"][3].update(image_id="7"), r"questions\[3\] of .* needs"),
        spoil(
            QUESTIONS, lambda d: d["questions"][3].update(question=7), r"questions\[3\]\.question of .* must be a text"
        ),
        spoil(QUESTIONS, lambda d: d["questions"].append(d["questions"][0]), "has question_id 1000 twice"),
        spoil(QUESTIONS, lambda d: d["questions"].insert(0, "x"), r"questions\[0\] of .* needs"),
        spoil(
            ANNOTATIONS, lambda d: d["annotations"].pop(0), r"1 of 46 questions have no annotation \(question_id 1000"
        ),
        spoil(
            ANNOTATIONS, lambda d: d["annotations"][2].update(image_id=9), "question 1002 is about image 9 in the one"
        ),
        spoil(ANNOTATIONS, lambda d: d["annotations"][2].pop("answers"), r"annotations\[2\] of .* needs"),
        spoil(ANNOTATIONS, lambda d: d["annotations"][2].update(answers=[{"answer": 3}]), "answer that is not a text"),
        spoil(
            ANNOTATIONS, lambda d: d["annotations"][2].update(answers=[{"answer": []}]), r"annotations\[2\] of .* needs"
        ),
    ],
)
def test_files_that_do_not_fit_are_named(root, name, change, message):
    rewrite(root / name, change)
    with pytest.raises(InputError, match=message) as caught:
        VQAv2(root=root).open()
    assert name in str(caught.value)


def test_a_shortened_questions_file_goes_with_the_full_annotations(root, layouts):
    rewrite(root / QUESTIONS, lambda d: d.update(questions=d["questions"][::5]))
    samples = VQAv2(root=root).open()
    assert len(samples) == 10
    full = VQAv2(root=layouts["folders"]).open()
    assert [samples[i].answers for i in range(10)] == [full[i].answers for i in range(0, 46, 5)]


def test_a_zip_with_other_content_is_named(root, layouts):
    (root / QUESTIONS).unlink()
    shutil.copy(layouts["zips"] / "v2_Annotations_Val_mscoco.zip", root / "v2_Questions_Val_mscoco.zip")
    with pytest.raises(InputError, match=rf"does not hold {QUESTIONS} .it holds {ANNOTATIONS}"):
        VQAv2(root=root).open()


texts = st.text(max_size=12)


@given(
    entries=st.dictionaries(
        st.integers(-(2**62), 2**62),
        st.tuples(st.integers(0, 5), texts, st.lists(texts, max_size=4)),
        min_size=1,
        max_size=8,
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_compact_index_holds_what_the_files_say(tmp_path_factory, entries, order):
    folder = tmp_path_factory.mktemp("index")
    asked = [{"question_id": i, "image_id": e[0], "question": e[1]} for i, e in entries.items()]
    told = [
        {"question_id": i, "image_id": e[0], "answers": [{"answer": a, "answer_id": 1} for a in e[2]]}
        for i, e in entries.items()
    ]
    order.shuffle(told)  # annotations need not lie in the order of the questions
    (folder / "q").write_text(json.dumps({"questions": asked}))
    (folder / "a").write_text(json.dumps({"annotations": told}))
    index = build_index(JsonFile(path=folder / "q"), JsonFile(path=folder / "a"))
    assert list(index.question_ids) == list(entries)
    assert [(index.image_ids[r], index.questions[r], list(index.answers(r))) for r in range(len(index))] == list(
        entries.values()
    )
    firsts = [index.image_ids[row] for row in index.first_of_each_image()]
    assert firsts == list(dict.fromkeys(index.image_ids))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"'split' must be one of train, val, test .got 'dev'"):
        VQAv2(split="dev")
    with pytest.raises(ValueError, match="'prompt' must hold"):
        VQAv2(prompt="what?")
    with pytest.raises(ValueError, match="'num_samples' must be"):
        VQAv2(num_samples=-1)


def test_the_photographs_and_questions_of_the_script(layout_script, layouts):
    assert len(layout_script.PHOTOS) >= 8
    samples = VQAv2(root=layouts["folders"]).open()
    assert len(samples) >= 24
    for i in range(len(samples)):
        sample = samples[i]
        assert len(sample.answers) == 10
        with Image.open(io.BytesIO(sample.images[0].read())) as photo:
            photo.load()
            assert max(photo.size) <= 640
