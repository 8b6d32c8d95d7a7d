"""Whatever is given: an exit status of the contract and words, or a value; never a traceback.

200 cases here, always the same; ``make fuzz`` makes 10,000 (``VLMBENCH_FUZZ``), others each time.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from tests.command_line import command_line
from vlmbench.cli import hydra_errors, validate
from vlmbench.data.image_folder import ImageFolder
from vlmbench.data.vqa_files import JsonFile
from vlmbench.data.vqa_index import build_index
from vlmbench.errors import BAD_INPUT, FAILED, OK, InputError, SampleError, UnreachablePointError, VlmbenchError
from vlmbench.records.config_history import flat
from vlmbench.records.reading import iter_rows, parse_row
from vlmbench.records.store import RecordStore
from vlmbench.request import ImageSource, Output, Request, Sample

CASES = int(os.environ.get("VLMBENCH_FUZZ", "200"))
ROWS = (Path(__file__).parent / "contract/old_runs/phase2_done/records.jsonl").read_bytes().splitlines()
COMPONENTS = (
    "model", "dataset", "sweep", "intervention", "measurement.stopping", "measurement.warmup",
)  # fmt: skip


def fuzzed(share: float) -> Callable[[Any], Any]:
    """So large a share of the cases; in CI always the same ones."""
    return settings(
        max_examples=max(10, round(CASES * share)), deadline=None, derandomize="VLMBENCH_FUZZ" not in os.environ,
        database=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# --------------------------------------------------------------------------------------------- what is generated

numbers = st.sampled_from([0, -1, 1, 3, 10**6, 10**400, -(10**30), 0.5, -0.0, 1e308]) | st.integers() | st.floats()
texts = st.text(max_size=12) | st.sampled_from(
    ["", "null", "???", "${nope}", "${seed}", "${oc.env:NOPE}", "${", "a b", "é", "日本", "'", "[", "log(1,2,3)", "inf", "-1",
     "true", "\0", "\n", "..", "/", "~", "\ud800", "_target_", "os.system", "vlmbench.errors.InputError", "cuda:99", "auto"]
)  # fmt: skip
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The configuration as it is composed, by the real command line."""
    folder = tmp_path_factory.mktemp("shipped")
    kept: list[DictConfig] = []

    def keep(job: Any) -> int:
        kept.append(OmegaConf.create(dict(job.config)))
        return 0

    done = command_line("sweep=vision_tokens", f"output_dir={folder}", "experiment=phase2", task=keep)
    assert done.status == OK, done.said
    return kept[0]


KEYS = sorted(
    (
        "seed", "name", "task", "workload", "report", "dry_run", "break_lock", "progress", "runs", "phase2_results", "parts",
        "output.tokens", "output.policy", "measurement.repeats", "measurement.image_size", "measurement.time_limit_s",
        "measurement.stopping.min_samples", "measurement.stopping._target_", "measurement.warmup.max_runs",
        "measurement.base_sample", "model", "model.weights", "model.config", "model.processor", "model._target_", "dataset",
        "dataset.num_samples", "dataset._target_", "sweep", "sweep.axes", "sweep.axes.vision_tokens", "sweep.axes.resolution",
        "sweep.axes.nope", "runtime", "runtime.device", "runtime.threads", "runtime.dtype", "runtime.engine", "intervention",
        "intervention.keep", "probe", "probe.timeline", "load", "load.rate_per_s", "experiment", "figures.extra",
        "figures.style", "notes", "hydra.verbose", "hydra.job.name", "hydra.mode", "hydra.launcher._target_",
        "hydra.sweeper._target_", "hydra.sweeper.params", "hydra/launcher", "nope", "a.b.c", "",
    )
)  # fmt: skip
literal = values.map(lambda value: json.dumps(value, ensure_ascii=False)) | texts | st.sampled_from(
    ["[1,2", "{a:1}", "1,2", "range(1,3)", "choice(1,2)", "log(1,2)", "'x", '"x', "[[[[]]]]", "{" * 200, "glob(*)", "a=b"]
)  # fmt: skip
overrides = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(["=", "=", "=", "", "@"]), literal,
)  # fmt: skip
OPTIONS = (
    "-m",
    "--cfg",
    "job",
    "all",
    "--help",
    "--info",
    "--resolve",
    "--package",
    "x",
    "--multirun",
    "-c",
    "--",
    "-q",
)
words = st.lists(overrides | overrides | texts | st.sampled_from(OPTIONS), min_size=1, max_size=3)


# -------------------------------------------------------------------------------------------------------- what must hold


def check_words(text: str, *, most: int | None = None) -> None:
    lines = text.strip().splitlines()
    assert lines
    assert most is None or len(lines) <= most, text


def built(job: Any) -> int:
    """All that a job does before it needs a model: its components are made."""
    for key in COMPONENTS:
        job.build(key)
    return 0


@fuzzed(0.1)
@given(words)
def test_a_command_line_ends_with_a_status_and_words(
    tmp_path_factory: pytest.TempPathFactory, given: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")  # of each case: a multirun says how its directory stands
    done = command_line(*given, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}/m", task=built)
    assert done.status in (OK, FAILED, BAD_INPUT), (given, done)
    assert "Traceback" not in done.said, (given, done.said)
    assert done.status == OK or done.said.strip(), given


@fuzzed(0.05)
@given(st.data())
def test_a_configuration_is_taken_or_refused_in_words(shipped: DictConfig, data: st.DataObject) -> None:
    config = OmegaConf.create(OmegaConf.to_container(shipped))
    names = [key for key, _ in flat(OmegaConf.to_container(config))]
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(names) | st.sampled_from([key for key in KEYS if key and "/" not in key]))
        try:
            OmegaConf.update(config, key, data.draw(values), force_add=True)
        except Exception:  # what OmegaConf does not take never comes as far as us
            continue
    try:
        merged = OmegaConf.merge(OmegaConf.structured(validate.RunConfig), config)
        assert isinstance(merged, DictConfig)
        validate.validate(merged)
        for key in COMPONENTS:
            validate.build(OmegaConf.select(merged, key))
    except VlmbenchError as error:
        check_words(str(error))
    except OmegaConfBaseException as error:  # as the job does
        check_words(hydra_errors.compact(error))


def mangled(data: st.DataObject, line: bytes) -> bytes:
    """A row in which something is otherwise: a value, a name, some bytes."""
    row = json.loads(line)
    for _ in range(data.draw(st.integers(0, 2))):
        row[data.draw(st.sampled_from(sorted(row)) | texts)] = data.draw(values)
    try:
        text = json.dumps(row).encode()
    except ValueError:
        return b""
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.binary(max_size=4)) + text[at + data.draw(st.integers(0, 3)) :]
    return text


@fuzzed(0.45)
@given(st.data())
def test_rows_are_rows_or_damaged_lines(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    lines = [mangled(data, line) if data.draw(st.booleans()) else line for line in ROWS[:4]]
    end = data.draw(st.sampled_from([b"\n", b"", b"\n\n", b"\r\n", b'\n{"half']))
    content = b"\n".join(lines) + end
    folder = tmp_path_factory.getbasetemp() / "rows"
    folder.mkdir(exist_ok=True)
    (folder / "records.jsonl").write_bytes(content)
    try:
        read = list(iter_rows(folder))
        with RecordStore(folder) as store:
            kept = len(store)
        again = list(iter_rows(folder))
    except InputError as error:  # of another schema
        check_words(str(error), most=2)
        return
    assert len(again) in (len(read), len(read) + 1), "only a row without its line end may come"
    assert kept == sum(row["status"] == "ok" for row in again)
    assert all(parse_row(json.dumps({**row, "ITL": None}).encode()) is not None for row in again)


documents = st.recursive(
    scalars
    | st.fixed_dictionaries(
        {}, optional={"question_id": scalars, "image_id": scalars, "question": scalars, "x": values}
    ),
    lambda inner: st.lists(inner, max_size=3) | st.fixed_dictionaries({}, optional={"questions": inner, "info": inner}),
    max_leaves=6,
)


@fuzzed(0.35)
@given(documents, st.booleans(), st.binary(max_size=3), st.integers(0, 60))
def test_questions_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, document: Any, whole: bool, extra: bytes, at: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "questions"
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(PNG)
    try:
        text = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:
        return
    text = text if whole else text[:at] + extra + text[at:]
    for name in ("questions.json", "questions.jsonl", "questions.csv"):
        (folder / name).write_bytes(text)
    for read in (
        lambda: build_index(JsonFile(path=folder / "questions.json"), None),
        lambda: len(ImageFolder(root=folder, questions=Path("questions.jsonl")).open()),
        lambda: len(ImageFolder(root=folder, questions=Path("questions.csv")).open()),
    ):
        try:
            assert read()
        except InputError as error:
            check_words(str(error), most=2)


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 199)).save(stream, format="PNG")
    return stream.getvalue()


PNG = _png()
sizes = st.none() | st.tuples(st.integers(-1, 300), st.integers(-1, 300))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vlmbench.models.loading import weightless

    kept: list[Any] = []
    done = command_line(
        "experiment=smoke",
        f"output_dir={tmp_path_factory.mktemp('tiny')}",
        task=lambda job: kept.append(job.build("model")) or 0,
    )
    assert done.status == OK, done.said
    return weightless(kept[0], dtype="float32")


@fuzzed(0.05)
@given(
    question=texts | st.just("<|image_pad|>"), images=st.integers(0, 3), size=sizes, number=st.none() | st.integers(-1, 3),
    prompt=st.none() | st.integers(-1, 40), vision=st.none() | st.integers(-1, 300), data=st.binary(max_size=20) | st.just(PNG),
)  # fmt: skip
def test_requests_are_prepared_or_refused_in_words(
    tiny: Any,
    question: str,
    images: int,
    size: Any,
    number: int | None,
    prompt: int | None,
    vision: int | None,
    data: bytes,
) -> None:
    source = ImageSource(name="a.png", read=lambda: data)
    sample = Sample(sample_id="s", question=question, images=(source,) * images)
    request = Request(
        sample=sample, output=Output(max_new_tokens=2, forced=True), num_images=number, prompt_tokens=prompt,
        image_size=size, vision_tokens=vision,
    )  # fmt: skip
    try:
        asked = tiny.resolve(request)
        counts = tiny.prepare(asked).counts
        assert counts.num_input_tokens > 0
    except (SampleError, UnreachablePointError) as error:
        check_words(str(error), most=2)
