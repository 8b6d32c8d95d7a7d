"""The Python API on the tiny model: measured, watched, read, saved, and given back as it was."""

from __future__ import annotations

import inspect
import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlmbench
from vlmbench.api.measuring import Silent
from vlmbench.errors import ConfigError, DeviceError, DirectoryConflictError, InputError, MeasurementError
from vlmbench.machine.host import device_state
from vlmbench.records.outcome import State, read_outcome

FEW = {"max_samples": 10, "min_time_s": 0.0}
QUICK: dict[str, Any] = {"output_tokens": 4, "stopping": FEW, "costs": False, "probes": ["timeline"]}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return vlmbench.load("tiny", device="cpu", threads=1)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.new("RGB", (56, 56), "grey")


@pytest.fixture(scope="module")
def run(tiny: tuple[Any, Any], image: Image.Image) -> vlmbench.Run:
    requests = [(image, f"What is this, {i}?") for i in range(4)]
    return vlmbench.measure(*tiny, requests, output_tokens=4, repeats=2)


def test_the_public_names_are_sorted_documented_and_there() -> None:
    assert vlmbench.__all__ == sorted(vlmbench.__all__)
    for name in vlmbench.__all__:
        public = getattr(vlmbench, name)
        assert inspect.getdoc(public), name
        assert name in dir(vlmbench)
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        vlmbench.mesure  # noqa: B018


def test_importing_it_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, vlmbench; print([m for m in ('torch', 'transformers', 'pandas', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_measure_gives_stages_that_add_up_and_only_measured_rows(run: vlmbench.Run) -> None:
    frame = run.frame
    assert len(frame) == 8
    assert set(frame["status"]) == {"ok"}
    assert set(frame["mode"]) == {"instrumented"}
    assert set(run.rows["mode"]) >= {"bare", "instrumented"}
    assert len(run.rows) > len(frame)
    parts = ["T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_residual"]
    present = [name for name in parts if name in frame]
    assert frame[present].sum(axis=1).to_numpy() == pytest.approx(frame["T_total"].to_numpy(), rel=1e-4)


@pytest.mark.parametrize("metric", ["T_total", "T_LLM_decode", "TTFT", "num_output_tokens"])
def test_an_infinite_value_in_a_frame_is_refused_by_its_name(run: vlmbench.Run, metric: str) -> None:
    frame = run.frame.copy()
    frame.loc[frame.index[0], metric] = float("inf")
    with pytest.raises(InputError, match=f"'{metric}' must be finite, or NaN .*got inf in 1 of {len(frame)}"):
        vlmbench.summary(frame)


def test_summary_of_a_frame_is_that_of_the_run_where_rows_suffice(run: vlmbench.Run) -> None:
    alone = vlmbench.summary(run.frame)["distribution"]["T_total"]["workload"]
    assert alone["p50"] == run.summary["distribution"]["T_total"]["workload"]["p50"]
    half = run.frame.head(4)
    assert vlmbench.summary(half)["runs"]["workload_runs"] == 4
    with pytest.raises(InputError, match="holds no row"):
        vlmbench.summary(run.frame.head(0))


def test_save_writes_what_the_command_line_writes(run: vlmbench.Run, tmp_path: Path) -> None:
    saved = run.save(tmp_path / "kept")
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names >= {
        "records.jsonl",
        "provenance.json",
        "points.json",
        "summary.json",
        "figures",
        "report.html",
        "tables",
    }
    again = vlmbench.read(tmp_path / "kept")
    assert again.frame["T_total"].tolist() == run.frame["T_total"].tolist()
    written = json.loads((tmp_path / "kept" / "summary.json").read_text())
    assert written["distribution"] == saved.summary["distribution"]
    assert len(vlmbench.read(tmp_path / "kept", rows="all").frame) == len(run.rows)
    with pytest.raises(InputError, match="holds rows already"):
        run.save(tmp_path / "kept")


def test_a_run_shows_itself(run: vlmbench.Run) -> None:
    assert "decode" in repr(run).lower()
    page = run._repr_html_()
    assert "<table>" in page
    assert "data:image/png;base64," in page
    assert run.figure("components_b") is run.figure("components_bars")
    for name, there in (
        ("pie_in_the_sky", "latency_"),
        ("components", "components_pie, components_bars .got"),
        ("", ""),
    ):
        with pytest.raises(InputError, match=f"'name' must be one of {there}"):
            run.figure(name)


_RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_a_comparison_of_methods_is_told_as_one_and_not_pooled() -> None:
    """It was read as a data set: one distribution over baseline and arms, and no saving."""
    read = vlmbench.read(_RESULTS / "h200_llava_fastv_eager")
    assert read.kind == read.summary["experiment_name"] == "interventions"
    assert read.summary["interventions"]
    assert set(read.figures) == {"interventions"}
    assert repr(read).startswith("What does the method save?")
    assert "<table>" in read._repr_html_()


def test_what_a_server_gave_is_in_the_summary(tmp_path: Path) -> None:
    """It was left out, and a sweep of output tokens, whose rows have no T_total, ended in a KeyError."""
    served = _RESULTS / "cpu_llama_server" / "closed"
    assert vlmbench.read(served).summary["serving"]["points"]
    for name in ("records.jsonl.xz", "loads.json", "points.json"):
        shutil.copy(served / name, tmp_path / name)
    provenance = json.loads((served / "provenance.json").read_text())
    provenance["config"]["report"] = "phase3"
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    swept = vlmbench.read(tmp_path)
    assert swept.kind == "phase3"
    assert swept.summary["serving"]["points"]
    assert repr(swept)


def test_a_run_that_cannot_be_saved_says_why(run: vlmbench.Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MeasurementError, match=r"the run cannot be saved in .*: "):
        run.save(tmp_path / "file" / "run")


def test_one_request_is_repeated_until_the_rule_is_met(tiny: tuple[Any, Any], image: Image.Image) -> None:
    one = vlmbench.measure(*tiny, [(image, "What is this?")], **QUICK)
    assert len(one.frame) == 10
    assert set(one.frame["num_output_tokens"]) == {4}


def test_a_sweep_of_output_tokens(tiny: tuple[Any, Any], image: Image.Image) -> None:
    swept = vlmbench.measure(*tiny, [(image, "What?")], sweep={"output_tokens": [2, 4, 8]}, **QUICK)
    assert swept.kind == "phase3"
    assert sorted(set(swept.frame["num_output_tokens"])) == [2, 4, 8]
    assert "output" in swept.summary["headline"]
    assert swept.figures


def test_a_directory_is_continued_and_another_configuration_refused(
    tiny: tuple[Any, Any], image: Image.Image, tmp_path: Path
) -> None:
    requests = [(image, "What?"), (image, "Why?")]
    first = vlmbench.measure(*tiny, requests, directory=tmp_path / "run", **QUICK)
    again = vlmbench.measure(*tiny, requests, directory=tmp_path / "run", **QUICK)
    assert len(first.rows[first.rows["status"] == "ok"]) == len(again.rows[again.rows["status"] == "ok"])
    with pytest.raises(DirectoryConflictError, match=r"output\.tokens"):
        vlmbench.measure(*tiny, requests, directory=tmp_path / "run", **{**QUICK, "output_tokens": 5})


def state(model: Any) -> tuple[Any, ...]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return hooks, modes, id(model.generation_config), model.generation_config.to_dict(), sorted(vars(model))


def test_the_model_is_given_back_as_it_was(tiny: tuple[Any, Any], image: Image.Image) -> None:
    model, processor = tiny
    model.train()
    model.model.visual.eval()
    model.generation_config.do_sample = True
    model.generation_config.temperature = 0.7
    try:
        before = state(model)
        vlmbench.measure(model, processor, [(image, "What?")], **QUICK)
        assert state(model) == before
        with pytest.raises(InputError, match="no request could be measured"):
            vlmbench.measure(model, processor, [(b"no image", "What?")], **QUICK)
        assert state(model) == before
        inputs = processor(text=["What is this?"], return_tensors="pt")
        with vlmbench.watch(model) as runs:
            model.generate(**inputs, max_new_tokens=3, do_sample=False, temperature=None)
            with pytest.raises(ValueError, match=r".+"):
                model.generate(**inputs, max_new_tokens=-1, do_sample=False, temperature=None)
        assert state(model) == before
        assert len(runs) == 1
    finally:
        model.eval()
        model.generation_config.do_sample = False
        model.generation_config.temperature = None


def drawn_from() -> tuple[Any, ...]:
    keys, position = np.random.get_state()[1:3]
    return random.getstate(), keys.tobytes(), position, torch.get_rng_state().tolist()


def test_random_numbers_of_the_caller_stay_where_they_were(tiny: tuple[Any, Any], image: Image.Image) -> None:
    before = drawn_from()
    model, _ = vlmbench.load("tiny", device="cpu", seed=3)
    assert drawn_from() == before
    request = [(image, "What?")]
    filled = vlmbench.measure(*tiny, request, sweep={"kv_length": [64, 80, 96]}, **QUICK)  # of random keys and values
    assert len(filled.frame)
    assert drawn_from() == before
    with pytest.raises(InputError, match="no request could be measured"):
        vlmbench.measure(*tiny, [(b"no image", "What?")], **QUICK)
    assert drawn_from() == before
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain = type(model)(model.config).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())


def test_watch_times_any_generate(tiny: tuple[Any, Any], image: Image.Image) -> None:
    model, processor = tiny
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    inputs = processor(text=[prompt], images=[[image]], return_tensors="pt")
    bare = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with vlmbench.watch(model) as runs:
        seen = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert seen.tolist() == bare.tolist()
    one = runs[0]
    assert one.num_output_tokens == 5
    assert len(one.ITL) == 4
    named = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_residual")
    assert sum(one.stages.get(name, 0.0) for name in named) == pytest.approx(one.T_total)
    assert one.stages["T_vision_encoder"] > 0


def test_watch_leaves_another_wrapper_in_place(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    calls: list[str] = []
    original = model.generate

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append("theirs")
        return original(*args, **kwargs)

    model.generate = theirs
    try:
        with vlmbench.watch(model) as runs:
            model.generate(**processor(text=["What?"], return_tensors="pt"), max_new_tokens=2)
        assert model.generate is theirs
        assert calls == ["theirs"]
        assert len(runs) == 1
    finally:
        del model.generate


def test_anatomy_is_a_table(tiny: tuple[Any, Any]) -> None:
    table = vlmbench.anatomy(tiny[0])
    assert list(table.columns) == ["stage", "path", "module_class", "parameters", "share", "rule"]
    assert set(table["stage"]) == {"vision_encoder", "projector", "language_model", "head"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "long"}, "'policy' must be one of forced, natural"),
        ({"rows": "some"}, "'rows' must be one of measured, all"),
        ({"probes": ["timelin"]}, "near it: timeline"),
        ({"sweep": {"outptu_tokens": [1]}}, "outptu_tokens"),
        ({"output_tokens": 0}, "'output_tokens' must be 1 or more"),
        ({"output_tokens": 10**9}, "'output_tokens' must be 1,048,576 or less"),
        ({"image_size": (28, 10**6)}, "'image_size' must be 16,384 or less"),
        ({"sweep": {"load.concurrency": [1, 4]}}, "axis 'load.concurrency' is none of vlmbench.measure"),
        ({"sweep": {"intervention": {"keep": [1, 0.5]}}}, "axis 'intervention.keep' is none of vlmbench.measure"),
    ],
)
def test_a_wrong_argument_is_refused(
    tiny: tuple[Any, Any], image: Image.Image, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        vlmbench.measure(*tiny, [(image, "What?")], **{**QUICK, **change})


@pytest.mark.parametrize("requests", [[], "text", [("only",)], [(3, "What?")], [("a.png", 3)]])
def test_what_is_no_request_is_refused(tiny: tuple[Any, Any], requests: Any) -> None:
    with pytest.raises(InputError, match="must be a"):
        vlmbench.measure(*tiny, requests, **QUICK)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda m, p, r: vlmbench.compare(None, "x"), "'baseline' must be a run or its directory"),
        (lambda m, p, r: vlmbench.read(None), "'path' must be a directory"),
        (lambda m, p, r: vlmbench.read(""), "'path' must be a directory"),
        (lambda m, p, r: vlmbench.summary("x"), "'frame' must hold rows"),
        (lambda m, p, r: vlmbench.Run(directory=Path("x"), which="some"), "'which' must be one of measured, all"),
        (lambda m, p, r: vlmbench.load(None), "'model' must be a name"),
        (lambda m, p, r: vlmbench.load("tiny", threads="two"), "'threads' must be a whole number of 64 bits or None"),
        (lambda m, p, r: vlmbench.anatomy("tiny"), "'model' must be a loaded model"),
        (lambda m, p, r: vlmbench.anatomy(m, {"head": 3}), "'override' must map stages"),
        (lambda m, p, r: vlmbench.watch(p).__enter__(), "'model' must be a loaded model"),
        (lambda m, p, r: vlmbench.watch(m, residual_goal=-1.0).__enter__(), "'residual_goal' must be 0 or more"),
        (lambda m, p, r: vlmbench.measure(p, m, r), "'model' must be a loaded model"),
        (lambda m, p, r: vlmbench.measure(m, None, r), "'processor' must be the model's processor"),
        (lambda m, p, r: vlmbench.measure(m, p, {1}), "'requests' must be a list|set"),
        (lambda m, p, r: vlmbench.measure(m, p, r, output_tokens=2.5), "'output_tokens' must be a whole number"),
        (lambda m, p, r: vlmbench.measure(m, p, r, repeats=0), "'repeats' must be 1 or more"),
        (lambda m, p, r: vlmbench.measure(m, p, r, sweep=["a"]), "'sweep' must be a mapping"),
        (lambda m, p, r: vlmbench.measure(m, p, r, probes="timeline"), "'probes' must be a list"),
        (lambda m, p, r: vlmbench.measure(m, p, r, time_limit_s=float("nan")), "'time_limit_s' must be a number"),
        (lambda m, p, r: vlmbench.measure(m, p, r, image_size=(9,)), "'image_size' must be .width, height"),
        (lambda m, p, r: vlmbench.measure(m, p, r, stopping={"a": 1}), "'a' must be a field of Stopping"),
        (lambda m, p, r: vlmbench.measure(m, p, r, warmup={"max_runs": None}), "'max_runs' must be a whole number"),
        (lambda m, p, r: vlmbench.measure(m, p, r, directory=""), "'directory' must be a directory"),
        (lambda m, p, r: vlmbench.measure(m, p, r, directory=__file__), "'directory' must be a directory.* is a file"),
        (lambda m, p, r: vlmbench.measure(m, p, [r[0][::-1]]), "the text of request 0 is Image"),
        (lambda m, p, r: vlmbench.load("tiny", path="nowhere"), "'path' goes with weights=pretrained"),
    ],
)
def test_an_argument_of_another_type_is_an_error_that_says_what_is_wanted(
    tiny: tuple[Any, Any], image: Image.Image, call: Any, wanted: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=wanted):
        call(*tiny, [(image, "What is this?")])


def test_the_state_of_the_machine_has_the_time_of_the_run_s_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set back during a run does not make its end lie before its begin."""
    before = device_state("cpu")["unix_s"]
    set_back = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: set_back)
    assert device_state("cpu")["unix_s"] >= before


def test_an_unknown_model_is_refused_with_names_near_it() -> None:
    with pytest.raises(ConfigError, match="near it: llava_1_5_7b"):
        vlmbench.load("llava15_7b")
    with pytest.raises(ConfigError, match="'devise' must be a setting of the runtime"):
        vlmbench.load("tiny", devise="cpu")


def test_reading_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        vlmbench.read(tmp_path / "nothing")
    (tmp_path / "study" / "phase1").mkdir(parents=True)
    with pytest.raises(InputError, match="nothing was measured there"):
        vlmbench.read(tmp_path / "study")
    (tmp_path / "study" / "phase1" / "records.jsonl").write_text("")
    with pytest.raises(InputError, match="its parts have them: phase1"):
        vlmbench.read(tmp_path / "study")


def test_watched_calls_of_several_threads_take_turns(tiny: tuple[Any, Any]) -> None:
    """Their hooks saw each other's calls, and two of three left no run."""
    model, processor = tiny
    inputs = processor(text=["What?"], return_tensors="pt")
    with vlmbench.watch(model) as runs, ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(model.generate, **inputs, max_new_tokens=4, min_new_tokens=4)
    assert [one.num_output_tokens for one in runs] == [4, 4, 4]
    assert all(sum(one.stages.values()) > 0 for one in runs)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RuntimeError("no terminal"), State.FAILED, "no terminal"),
        (KeyboardInterrupt(), State.INTERRUPTED, "interrupted"),
    ],
)
def test_a_run_that_an_error_ends_does_not_claim_to_run(
    tiny: tuple[Any, Any], image: Image.Image, tmp_path: Path, error: BaseException, state: State, reason: str
) -> None:
    class Fails(Silent):
        def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
            raise error

    where = tmp_path / "run"
    with pytest.raises(type(error)):
        vlmbench.measure(*tiny, [(image, "What?")], **QUICK, directory=where, progress=Fails())
    said = read_outcome(where)
    assert said is not None
    assert (said.state, said.reason) == (state, reason)
    assert len(vlmbench.measure(*tiny, [(image, "What?")], **QUICK, directory=where).frame) == 10
    again = read_outcome(where)
    assert again is not None
    assert again.state == State.DONE


def test_one_measurement_at_a_time(tiny: tuple[Any, Any], image: Image.Image) -> None:
    refused = []

    class Meddler(Silent):
        def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
            if not refused:
                with pytest.raises(DeviceError, match="another measurement is under way") as caught:
                    vlmbench.measure(*tiny, [(image, "What?")], **QUICK)
                refused.append(caught.value)

    assert len(vlmbench.measure(*tiny, [(image, "What?")], **QUICK, progress=Meddler()).frame) == 10
    assert refused
    vlmbench.measure(*tiny, [(image, "What?")], **QUICK)
