import io
import pickle
import statistics
import subprocess
import sys
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmbench.data import synthetic_image
from vlmbench.data.synthetic import SyntheticVQA

N = 6000


@pytest.fixture(scope="module")
def samples():
    opened = SyntheticVQA(num_samples=N).open()
    return [opened[i] for i in range(N)]


@pytest.fixture(scope="module")
def images(samples):
    return list({sample.images[0].name: sample.images[0] for sample in samples}.values())


def test_questions_have_the_lengths_of_vqa_v2(samples):
    lengths = [len(sample.question.split()) for sample in samples]
    assert statistics.mean(lengths) == pytest.approx(6.2, abs=0.15)
    assert sum(4 <= n <= 10 for n in lengths) / N > 0.9
    assert all(sample.question.endswith("?") for sample in samples)


def test_answers_have_the_lengths_and_kinds_of_vqa_v2(samples):
    assert {len(sample.answers) for sample in samples} == {10}
    for answers in (
        [answer for sample in samples for answer in sample.answers],
        [Counter(sample.answers).most_common(1)[0][0] for sample in samples],
    ):
        words = Counter(len(answer.split()) for answer in answers)
        shares = {n: words[n] / len(answers) for n in words}
        assert shares[1] == pytest.approx(0.89, abs=0.02)
        assert shares[2] == pytest.approx(0.07, abs=0.015)
        assert shares[3] == pytest.approx(0.03, abs=0.01)
        assert sum(a in ("yes", "no") for a in answers) / len(answers) == pytest.approx(0.38, abs=0.025)


def test_questions_an_image_and_sizes_are_those_of_coco(samples, images):
    assert len(samples) / len(images) == pytest.approx(5.3, abs=0.02)
    sizes = Counter(image.size for image in images)
    for size, percent in {(640, 480): 23, (640, 427): 13, (480, 640): 8, (640, 426): 5, (427, 640): 4.5}.items():
        # the drawn sizes of the rest may hit a named one by chance: 0.25 %
        assert 100 * sizes[size] / len(images) == pytest.approx(percent, abs=4)
    assert all(max(size) == 640 and 360 <= min(size) <= 556 for size in sizes)
    typical = [167_500 <= w * h <= 355_840 and 0.6 <= h / w <= 1.5 for w, h in sizes.elements()]
    assert sum(typical) / len(images) == pytest.approx(0.9, abs=0.04)  # verified of COCO's training images
    rest = [size for size in sizes.elements() if size not in synthetic_image._SIZES]
    assert sum(w > h for w, h in rest) / len(rest) == pytest.approx(0.75, abs=0.05)


def test_images_are_jpeg_files_as_large_as_photos(images):
    kilobytes = []
    for image in images[:60]:
        data = image.read()
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == "JPEG"
            assert picture.size == image.size
            assert picture.mode == "RGB"
        kilobytes.append(len(data) / 1000 * 640 * 480 / (image.size[0] * image.size[1]))
    assert 100 < statistics.median(kilobytes) < 170
    assert min(kilobytes) > 50
    assert max(kilobytes) < 200
    assert max(kilobytes) > 1.5 * min(kilobytes)


@given(indices=st.lists(st.integers(0, 99_999), min_size=1, max_size=6), seed=st.integers(0, 3))
@settings(max_examples=25)
def test_a_sample_depends_on_seed_and_index_only(indices, seed):
    first, second = (
        SyntheticVQA(num_samples=100_000, seed=seed).open(),
        SyntheticVQA(num_samples=10**6, seed=seed).open(),
    )
    taken = {i: first[i] for i in indices}
    for i in sorted(indices, reverse=True):
        again = second[i]
        assert (again.sample_id, again.question, again.answers) == (
            taken[i].sample_id,
            taken[i].question,
            taken[i].answers,
        )
        assert again.images[0].size == taken[i].images[0].size
        assert again.images[0].name == taken[i].images[0].name


def test_bytes_are_the_same_in_another_process():
    code = (
        "import hashlib; from vlmbench.data.synthetic import SyntheticVQA; s = SyntheticVQA(seed=3).open();"
        "print(hashlib.sha256(b''.join(s[i].images[0].read() for i in (70, 5))).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_ids_are_unlike_and_seeds_make_other_data(samples):
    assert len({sample.sample_id for sample in samples}) == N
    other = SyntheticVQA(num_samples=20, seed=1).open()
    assert [other[i].question for i in range(20)] != [samples[i].question for i in range(20)]
    assert other[0].images[0].read() != samples[0].images[0].read()


def test_questions_about_one_image_share_its_bytes_and_reading_is_lazy(monkeypatch):
    rendered = []
    real = synthetic_image.render_jpeg
    monkeypatch.setattr(
        synthetic_image, "render_jpeg", lambda **asked: rendered.append(asked["image"]) or real(**asked)
    )
    opened = SyntheticVQA(num_samples=53).open()
    taken = [opened[i] for i in range(53)]
    assert rendered == []
    for sample in taken:
        assert sample.images[0].read() is sample.images[0].read()
    assert rendered == list(range(10))


def test_nothing_grows_with_the_number_of_samples():
    opened = SyntheticVQA(num_samples=100_000).open()
    opened[0].images[0].read()
    tracemalloc.start()
    for i in range(0, 100_000, 7):
        opened[i]
    for i in range(0, 100_000, 2000):
        opened[i].images[0].read()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(opened) == 100_000
    assert grown < 4e6  # eight images and some caches


def test_sequence_protocol_and_pickle():
    opened = SyntheticVQA(num_samples=5, prompt="Q: {question}").open()
    assert len(list(iter(opened))) == 5  # ends with IndexError
    assert opened[-1].sample_id == opened[4].sample_id
    assert opened[0].question.startswith("Q: ")
    with pytest.raises(IndexError):
        opened[5]
    copy = pickle.loads(pickle.dumps(opened))
    assert copy[2].images[0].read() == opened[2].images[0].read()
    assert pickle.loads(pickle.dumps(opened[2])).images[0].read() == opened[2].images[0].read()


def test_wrong_options_are_named():
    for wrong in ({"num_samples": 0}, {"seed": -1}, {"prompt": "x"}):
        with pytest.raises(ValueError, match=r"'(num_samples|seed|prompt)' must"):
            SyntheticVQA(**wrong)


def test_long_tailed_sizes_stay_in_their_range_and_few_are_large():
    opened = SyntheticVQA(num_samples=N, sizes="long_tail").open()
    sizes = {(image := opened[i].images[0]).name: image.size for i in range(N)}
    pixels = sorted(width * height for width, height in sizes.values())
    assert min(pixels) > 0.99 * 809 * 1024
    assert max(pixels) < 1.01 * 61_566 * 1024
    assert statistics.median(pixels) == pytest.approx(1.5e6, rel=0.1)
    assert pixels[int(0.99 * len(pixels))] > 20e6
    assert opened[0].question == SyntheticVQA(num_samples=N).open()[0].question
    with pytest.raises(ValueError, match="'sizes' must be one of coco, long_tail"):
        SyntheticVQA(sizes="huge")
