import os
import pickle
import subprocess
import sys

import datasets
import pytest

from vlmbench.data.hub import HubDataset
from vlmbench.data.vqa_v2 import VQAv2
from vlmbench.errors import InputError, SampleError

TEXTS = datasets.List(datasets.Value("string"))
SHAPES = {  # answers as data sets keep them -> (feature, value of a list of texts)
    "records": (
        datasets.List({"answer": datasets.Value("string"), "answer_id": datasets.Value("int64")}),
        lambda answers: [{"answer": a, "answer_id": i} for i, a in enumerate(answers)],
    ),
    "texts": (TEXTS, list),
    "struct of lists": ({"answer": TEXTS, "answer_id": datasets.List(datasets.Value("int64"))}, None),
}


@pytest.fixture(scope="module")
def real(layouts):
    """The photographs as a ``datasets.Dataset``, with the columns of lmms-lab/VQAv2 that are read."""
    samples = VQAv2(root=layouts["folders"]).open()
    rows = [samples[i] for i in range(len(samples))]
    image = [{"bytes": row.images[0].read(), "path": None} for row in rows]
    columns = {
        "question_id": [int(row.sample_id) for row in rows],
        "image": image,
        "pair": [[picture, picture][: i % 3] for i, picture in enumerate(image)],
        "question": [row.question for row in rows],
        "answers": [SHAPES["records"][1](row.answers) for row in rows],
        "texts": [list(row.answers) for row in rows],
        "struct": [{"answer": list(row.answers), "answer_id": [1]} for row in rows],
        "multiple_choice_answer": [row.answers[0] for row in rows],
    }
    features = {
        "question_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "pair": datasets.List(datasets.Image()),
        "question": datasets.Value("string"),
        "answers": SHAPES["records"][0],
        "texts": TEXTS,
        "struct": SHAPES["struct of lists"][0],
        "multiple_choice_answer": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features)), rows


@pytest.fixture(scope="module")
def saved(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    real[0].save_to_disk(folder / "one")
    datasets.DatasetDict({"validation": real[0], "test": real[0].select(range(3))}).save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    real[0].to_parquet(folder / "parquet" / "validation-00000-of-00001.parquet")
    return folder


def test_a_saved_data_set_gives_its_samples_with_encoded_images(saved, real):
    for name in ("one", "splits"):
        samples = HubDataset(path=str(saved / name)).open()
        assert len(samples) == len(real[1])
        for i, expected in enumerate(real[1]):
            sample = samples[i]
            assert (sample.sample_id, sample.question, sample.answers) == (
                expected.sample_id,
                expected.question,
                expected.answers,
            )
            assert sample.images[0].read() == expected.images[0].read()  # byte for byte: never decoded
    assert len(HubDataset(path=str(saved / "splits"), split="test").open()) == 3


def test_a_folder_of_parquet_files(saved, real, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    samples = HubDataset(path=str(saved / "parquet"), num_samples=5).open()
    assert samples[4].images[0].read() == real[1][4].images[0].read()


def test_no_image_is_decoded(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    samples = HubDataset(path=str(saved / "one")).open()
    assert samples[7].images[0].read()


@pytest.mark.parametrize("column", ["answers", "texts", "struct"])
def test_answers_of_every_shape(saved, real, column):
    samples = HubDataset(path=str(saved / "one"), answers_column=column).open()
    assert samples[9].answers == real[1][9].answers


def test_other_columns_and_choices(saved, real):
    path = str(saved / "one")
    assert HubDataset(path=path, answers_column="multiple_choice_answer").open()[0].answers == ("yes",)
    assert HubDataset(path=path, answers_column=None, id_column=None).open()[5].sample_id == "5"
    pairs = HubDataset(path=path, image_column="pair").open()
    assert [len(pairs[i].images) for i in range(3)] == [0, 1, 2]
    assert pairs[5].images[1].read() == real[1][5].images[0].read()
    few = HubDataset(path=path, num_samples=4, shuffle=True, seed=2, prompt="{question} Now.").open()
    assert len(few) == 4
    assert few[0].question.endswith("? Now.")
    copy = pickle.loads(pickle.dumps(few))
    assert copy[3].images[0].read() == few[3].images[0].read()


def test_images_by_path_and_without_bytes(tmp_path, layouts):
    photo = next((layouts["folders"] / "val2014").iterdir())
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": str(photo)}, {"bytes": None, "path": "x.jpg"}, None], "question": ["a"] * 3},
        features=datasets.Features({"image": datasets.Image(decode=False), "question": datasets.Value("string")}),
    )
    samples = HubDataset(path="x")  # the table is handed over: save_to_disk would embed the bytes
    from vlmbench.data.hub import HubSamples

    opened = HubSamples(dataset=samples, table=table, rows=range(3))
    assert opened[0].images[0].read() == photo.read_bytes()
    for i in (1, 2):
        with pytest.raises(SampleError, match="holds no encoded image"):
            opened[i].images[0].read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "picture"}, r"no column 'picture' .it has question_id, image.*set dataset\.image_column"),
        ({"question_column": "q"}, r"no column 'q' .*set dataset\.question_column"),
        ({"question_column": "question_id"}, "must hold texts"),
        ({"answers_column": "question_id"}, r"must hold a text.*set dataset\.answers_column"),
        ({"id_column": "multiple_choice_answer"}, "holds the same id more than once"),
    ],
)
def test_wrong_columns_are_named(saved, options, message):
    with pytest.raises(InputError, match=message):
        HubDataset(path=str(saved / "one"), **{"id_column": None, **options}).open()


def test_wrong_paths_are_named(saved, tmp_path):
    with pytest.raises(InputError, match=r"set dataset\.path to a hub id"):
        HubDataset().open()
    with pytest.raises(InputError, match=r"no split 'train' .it has validation, test"):
        HubDataset(path=str(saved / "splits"), split="train").open()
    with pytest.raises(InputError, match=r"no folder .*gone"):
        HubDataset(path=str(tmp_path / "gone")).open()
    with pytest.raises(InputError, match="cannot be loaded"):
        HubDataset(path=str(tmp_path)).open()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        HubDataset(path=str(tmp_path / "broken")).open()


def test_an_empty_data_set_and_empty_questions_are_refused(real, tmp_path):
    real[0].select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(InputError, match="is empty"):
        HubDataset(path=str(tmp_path / "empty")).open()
    datasets.Dataset.from_dict({"image": [b"x", b"x"], "question": ["a", None]}).save_to_disk(tmp_path / "gap")
    with pytest.raises(InputError, match=r"column 'question' .* has 1 empty rows"):
        HubDataset(path=str(tmp_path / "gap")).open()


def test_without_network_the_message_says_what_to_do(tmp_path):
    code = (
        "from vlmbench.data.hub import HubDataset\nfrom vlmbench.errors import InputError\n"
        "try: HubDataset(path='lmms-lab/VQAv2').open()\nexcept InputError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "data set lmms-lab/VQAv2, split validation, cannot be loaded" in done.stdout
    assert "save_to_disk" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 2


def test_a_row_without_pictures_is_a_row_of_its_own(real, tmp_path):
    picture = {"bytes": real[1][0].images[0].read(), "path": None}
    features = datasets.Features({"images": datasets.List(datasets.Image()), "q": datasets.Value("string")})
    rows = [
        {"images": [picture], "q": "one"},
        {"images": None, "q": "no pictures"},
        {"images": [picture], "q": "after"},
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    columns = {"image_column": "images", "question_column": "q", "id_column": None, "answers_column": None}
    samples = HubDataset(path=str(tmp_path / "saved"), num_samples=None, shuffle=False, **columns).open()
    assert [len(samples[i].images) for i in range(3)] == [1, 0, 1]
    assert samples[2].images[0].read() == picture["bytes"]
