"""Two sides on the command line: what was planted is found, equal runs pass, what is unlike or torn is refused."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import PROVENANCE, row, write
from tests.analysis.test_compare import took_turns
from tests.figures.seen import outside, overlaps, texts
from vlmbench.analysis.compare import Change
from vlmbench.analysis.provenance_changes import differences_of
from vlmbench.analysis.results import read_results
from vlmbench.analysis.two_sides import judge, regressed
from vlmbench.errors import ConfigError, InputError
from vlmbench.figures.comparison import comparison_figure
from vlmbench.records import baselines
from vlmbench.report.comparison import as_markdown, grid, headline, text
from vlmbench.report.comparison import write as write_comparison

CliRun = Callable[..., subprocess.CompletedProcess[str]]


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    """The planted provenance with some values of its parts changed."""
    made = deepcopy(PROVENANCE)
    for part, values in parts.items():
        made[part] = {**made.get(part, {}), **values}
    return made


def a_run(directory: Path, seed: int, provenance: dict[str, Any] | None = None, *, n: int = 120, decode: float = 1.0, vision: int = 576) -> Path:  # fmt: skip
    """Requests of different lengths, 1 % of noise; ``decode`` multiplies the time of a token."""
    noise = random.Random(seed)
    rows = [
        row(
            sample=f"s{i}", started=float(i), vision=8 * noise.gauss(1, 0.01), prefill=(20 + i % 9) * noise.gauss(1, 0.01),
            setup=noise.gauss(1, 0.01), projector=noise.gauss(1, 0.01), host=5 * noise.gauss(1, 0.01),
            gaps=[10 * decode * noise.gauss(1, 0.01) for _ in range(3 + i % 4)], tokens=(vision, 20),
        )
        for i in range(n)
    ]  # fmt: skip
    return write(directory, rows, provenance)


def test_a_slower_decode_is_a_regression_and_nothing_else_is(tmp_path: Path) -> None:
    found = judge(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, decode=1.08))
    slow = {change.metric for _, change in found.regressions}
    assert "T_LLM_decode" in slow
    assert slow <= {"T_LLM_decode", "T_decode_forward", "T_decode_loop", "T_total", "T_request"}
    decode = found.pairs[0].comparison.changes["T_LLM_decode"]
    assert decode.ratio.value == pytest.approx(1.08, abs=0.01)
    assert found.exit_status == 1
    assert headline(found).startswith("Regression beyond 3 %: ")
    assert not regressed(decode, 0.2), "slower, and by less than is allowed"
    assert judge(tmp_path / "a", tmp_path / "b", threshold=0.2).exit_status == 0
    assert judge(tmp_path / "b", tmp_path / "a").exit_status == 0, "faster is no regression"


def test_a_time_of_microseconds_decides_only_where_it_is_asked_to(tmp_path: Path) -> None:
    a, b = a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2)
    rows = [json.loads(line) for line in (b / "records.jsonl").read_text().splitlines()]
    for one in rows:
        one["T_request"] += one["T_detokenize"]
        one["T_detokenize"] *= 2
    (b / "records.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    found = judge(a, b, threshold=0.5)
    assert found.pairs[0].comparison.changes["T_detokenize"].change is Change.SLOWER
    assert found.exit_status == 0
    assert next(row for row in grid(found.pairs[0], found).rows if row[0] == "T_detokenize")[5] == "slower (shown only)"
    assert judge(a, b, threshold=0.5, gate=["T_detokenize"]).exit_status == 1


def test_equal_runs_pass(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", 1)
    assert [judge(a, a_run(tmp_path / f"b{seed}", seed)).exit_status for seed in range(2, 12)] == [0] * 10


def test_what_differs_stands_first_and_unlike_hardware_is_refused(tmp_path: Path) -> None:
    a = a_run(tmp_path / "a", 1, changed(software={"packages": {"torch": "2.12"}}, config={"output": {"tokens": 32}}))
    b = a_run(tmp_path / "b", 2, changed(device={"name": "Other GPU"}, software={"packages": {"torch": "2.13"}},
                                         config={"output": {"tokens": 64}}), vision=288)  # fmt: skip
    with pytest.raises(InputError, match=r"unlike: device\.name: Planted GPU → Other GPU") as refused:
        judge(a, b)
    assert len(str(refused.value).splitlines()) == 2
    found = judge(a, b, allow_unlike=True)
    shown = text(found)
    for words in ("device.name: Planted GPU → Other GPU", "torch: 2.12 → 2.13", "output.tokens: 32 → 64",
                  "num_vision_tokens: 576 at the median → 288 at the median (differs in 120 of 120 requests)"):  # fmt: skip
        assert shown.index(words) < shown.index("T_request"), words
        assert words in as_markdown(found)
    same = read_results(a)[0]
    assert differences_of(same, same) == ()
    other_model = a_run(tmp_path / "c", 3, changed(model={"name": "another"}))
    with pytest.raises(InputError, match=r"model\.name: planted-vlm → another"):
        judge(a, other_model)


def test_too_few_runs_are_no_pass(tmp_path: Path) -> None:
    found = judge(a_run(tmp_path / "a", 1, n=5), a_run(tmp_path / "b", 2, n=5))
    assert found.exit_status == 2
    assert "too noisy to tell (n too small" in headline(found)


def test_grids_are_paired_by_what_differs_within_them(tmp_path: Path) -> None:
    for side, seed in (("a", 1), ("b", 9)):
        for number, name in enumerate(("eager", "compiled") if side == "a" else ("compiled", "eager", "new")):
            slower = 1.2 if (side, name) == ("b", "compiled") else 1.0
            a_run(tmp_path / side / f"{number}_run", seed + number, changed(runtime={"name": name}, config={"name": name}), decode=slower)  # fmt: skip
    found = judge(tmp_path / "a", tmp_path / "b")
    assert [pair.label for pair in found.pairs] == ["eager", "compiled"]
    assert {pair.label for pair, _ in found.regressions} == {"compiled"}
    assert len(found.only_candidate) == 1
    with pytest.raises(InputError, match="would be compared with itself"):
        judge(tmp_path / "a", tmp_path / "a")
    back = judge(tmp_path / "b", tmp_path / "a")
    assert back.exit_status == 2, "a run of the baseline has no counterpart"
    assert "1 run of the baseline" in headline(back)
    written = {path.name for path in write_comparison(found, tmp_path / "out")}
    assert {"compare_1.png", "compare_2.png", "compare_1.tex"} <= written


def test_what_could_not_be_read_stands_apart_from_what_is_to_be_known_of_rows(tmp_path: Path) -> None:
    for side, seed in (("a", 1), ("b", 9)):
        a_run(tmp_path / side / "run", seed)
    (tmp_path / "a" / "torn").mkdir()
    (tmp_path / "a" / "torn" / "records.jsonl").write_text("")
    found = judge(tmp_path / "a", tmp_path / "b")
    (told,) = found.uncompared
    assert told.startswith(f"{tmp_path / 'a'}: left out: ")
    assert not any("left out" in remark for remark in found.pairs[0].remarks)


def test_grids_that_differ_in_one_setting_everywhere_are_paired_by_the_others(tmp_path: Path) -> None:
    for side, tokens in (("a", (8, 16)), ("b", (4, 16))):
        for name, count in zip(("phase2", "phase3"), tokens, strict=True):
            config = {"name": name, "output": {"tokens": count}, "probe": {"kernels": {"trace_dir": f"{side}{name}"}}}
            a_run(tmp_path / side / name, count, changed(config=config))
    found = judge(tmp_path / "a", tmp_path / "b")
    assert [pair.label for pair in found.pairs] == ["phase2", "phase3"]
    assert [[one.name for one in pair.differences] for pair in found.pairs] == [["output.tokens"], []]


@pytest.mark.parametrize("part", ["software", "host", "config", "sessions", "device", "model", "runtime"])
def test_a_damaged_provenance_is_no_reason_to_fail(tmp_path: Path, part: str) -> None:
    a = a_run(tmp_path / "a", 1)
    b = a_run(tmp_path / "b", 2, {**PROVENANCE, part: ["not", 1]})
    assert judge(a, b).exit_status == 0
    assert judge(baselines.save("kept", [b], b, tmp_path / "k"), a).exit_status == 0


def test_the_table_fits_and_the_figure_shows_each_time(tmp_path: Path) -> None:
    found = judge(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", 2, decode=1.08))
    pair = found.pairs[0]
    table = grid(pair, found)
    assert {row[0] for row in table.rows} == set(pair.comparison.changes)
    assert next(row for row in table.rows if row[0] == "T_LLM_decode")[5] == "slower, regression"
    figure = comparison_figure(list(pair.comparison.changes.values()), PROVENANCE, threshold=0.03, requests=120)
    assert "T_LLM_decode" in texts(figure)
    assert not overlaps(figure)
    assert not outside(figure)


def test_a_baseline_by_name_holds_what_comparison_needs_and_no_more(tmp_path: Path) -> None:
    told = changed(
        host={"host": "a-machine", "cpu": "x86"}, config={"output": {"tokens": 8}, "output_dir": "/home/me/x"}
    )
    told["sessions"] = [
        {"command": ["model.token=hunter2"], "code": {"vlmbench": {"version": "1"}, "caller": {"remote": "u"}}}
    ]
    source = a_run(tmp_path / "runs" / "0_a", 1, told)
    kept = tmp_path / "kept"
    place = baselines.save("main", [source], tmp_path / "runs", kept)
    assert baselines.find("main", kept) == place == kept / "main"
    stored = "".join(p.read_text() for p in place.rglob("*.json"))
    assert not any(word in stored for word in ("a-machine", "hunter2", "remote", "/home"))
    candidate = a_run(tmp_path / "b", 2, told, decode=1.1)
    assert (
        judge(place, candidate).pairs[0].comparison.as_dict() == judge(source, candidate).pairs[0].comparison.as_dict()
    )
    baselines.save("main", [candidate], candidate, kept)
    assert judge(kept / "main", candidate).exit_status == 0, "replaced"
    assert [p.name for p in kept.iterdir()] == ["main"]
    with pytest.raises(InputError, match=r"saved in .*: main"):
        baselines.find("mian", kept)
    with pytest.raises(ConfigError, match="must be a name"):
        baselines.save("../x", [candidate], candidate, kept)
    (kept / "mine").mkdir()
    with pytest.raises(InputError, match="is no saved baseline"):
        baselines.save("mine", [candidate], candidate, kept)


def test_the_command_line_for_ci(vlmbench: CliRun, vlmbench_here: CliRun, tmp_path: Path) -> None:
    """0, 1 and 2; packed rows; a baseline by name; nothing written unless asked for; no torch."""
    a = a_run(tmp_path / "a", 1)
    a_run(tmp_path / "b", 2, decode=1.1)
    (a / "records.jsonl.xz").write_bytes(lzma.compress((a / "records.jsonl").read_bytes()))
    (a / "records.jsonl").unlink()
    code = (
        "import sys\nsys.argv[1:] = ['experiment=compare', 'baseline=a', 'candidate=b']\n"
        "from vlmbench.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: print('rc', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("rc 1 False\n"), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]

    done = vlmbench("experiment=compare", "candidate=a", "save_baseline=main")
    assert done.returncode == 0, done.stderr
    assert "saved as baseline 'main': .vlmbench/baselines/main" in done.stderr
    done = vlmbench(
        "experiment=compare", "baseline=main", "candidate=b", "save_baseline=main", "output_dir=out", COLUMNS="80"
    )
    assert done.returncode == 1, done.stderr
    assert "baseline 'main' is left as it was" in done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith(" T_")) <= 80
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"compare.{k}" for k in ("json", "md", "tex", "png", "pdf")
    }
    said = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert said["exit_status"] == 1
    assert {"label": "", "metric": "T_LLM_decode"} in said["regressions"]

    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "records.jsonl").write_text('{"half')
    for given in (["candidate=torn"], ["candidate=nowhere"], ["candidate=b", "threshold=3"], []):
        done = vlmbench_here("experiment=compare", "baseline=main", *given)
        assert done.returncode == 2, done.stderr
        assert 1 <= len(done.stderr.strip().splitlines()) <= 2, done.stderr
        assert "Traceback" not in done.stderr


def test_a_baseline_keeps_turns_and_the_machine_of_all_sessions(tmp_path: Path) -> None:
    """Compared with what was kept, a run differs as from the run itself: in turns, and by how fast the machine was."""
    first, second = (took_turns(tmp_path / name, side, side + 1, samples=32) for side, name in enumerate("ab"))
    for run in (first, second):  # continued alone, by a later session
        told = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps({**told, "sessions": [*told["sessions"], {"session": 1}]}))
    place = baselines.save("main", [first], first, tmp_path / "kept")
    found, known = judge(place, second).pairs[0], judge(first, second).pairs[0]
    assert found.comparison.pairs == 128
    assert found.comparison.pace is not None
    assert found.comparison.as_dict() == known.comparison.as_dict()
    assert found.remarks == known.remarks
    assert baselines.save("again", [place], place, tmp_path / "kept")
    again = judge(tmp_path / "kept" / "again", second).pairs[0]
    assert again.comparison.as_dict() == known.comparison.as_dict(), "a baseline of a baseline"
    alone = judge(baselines.save("b", [second], second, tmp_path / "kept"), a_run(tmp_path / "c", 1), allow_unlike=True)
    assert alone.pairs[0].comparison.pairs is None


def test_a_baseline_that_was_kept_without_turns_is_compared_without(tmp_path: Path) -> None:
    first, second = (took_turns(tmp_path / name, side, side + 1, samples=128) for side, name in enumerate("ab"))
    place = baselines.save("main", [first], first, tmp_path / "kept")
    rows = [json.loads(line) for line in gzip.decompress((place / "records.jsonl.gz").read_bytes()).splitlines()]
    for one in rows:
        for name in ("turn", "yardstick_ms"):
            del one[name]
    (place / "records.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode() + b"\n"))
    told = json.loads((place / "provenance.json").read_text())
    told["sessions"] = [{"started_unix_s": None, "code": {"vlmbench": None}}]
    (place / "provenance.json").write_text(json.dumps(told))
    assert judge(place, second).pairs[0].comparison.pairs is None
