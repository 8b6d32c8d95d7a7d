"""What the page says, from published rows and from made ones: right, bounded, and said plainly where it lacks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.analysis.made import row, usual, write
from tests.page import published
from vlmbench.analysis.frames import load_runs
from vlmbench.errors import InputError
from vlmbench.figures.theme import dtype_name
from vlmbench.records.files import write_json
from vlmbench.report import write_report
from vlmbench.report.narrative.pieces import plain
from vlmbench.report.narrative.serving import load_name
from vlmbench.report.page import compared, tail, write_page
from vlmbench.report.page.cells import rounded
from vlmbench.report.page.contents import page_data
from vlmbench.report.page.first_screen import saved
from vlmbench.report.page.lane import lane_of
from vlmbench.report.page.parts import Part, parts_of
from vlmbench.report.page.quality import _stopping, command, flag_name
from vlmbench.report.page.sample import point_words, requests_of
from vlmbench.report.page.stories import Story, stories_of
from vlmbench.report.phase1_summary import summarise


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.study(tmp_path_factory.mktemp("page") / "study")


def test_a_request_that_keeps_a_load_up_is_not_marked_for_it(tmp_path: Path) -> None:
    """One measured request of this run carries a flag; five others were sent to keep the load up."""
    part = parts_of(published.unpack("h200_llava_endpoint/open", tmp_path / "run"))[0]
    lane = lane_of(part.frame, limit=1000)
    assert lane is not None
    assert lane["flag_names"] == ["client_slow"]
    assert sum(flags > 0 for flags in lane["flags"]) == 1


def test_what_a_server_was_asked_to_choose_is_no_data_type(tmp_path: Path) -> None:
    run = published.unpack("h200_llava_endpoint/open", tmp_path / "run")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["runtime"]["dtype"] == "auto"
    assert dtype_name(provenance) == ""
    assert dtype_name({"runtime": {"dtype": "torch.bfloat16"}}) == "bfloat16"
    text = json.dumps(page_data(run)["stories"][0])
    assert "auto" not in re.findall(r"[\w ]+", text)


def test_three_sentences_of_a_study(study: Path) -> None:
    data = page_data(study)
    (story,) = data["stories"]
    first, tail, token = (plain(sentence) for sentence in story["detail"]["answer"])
    assert re.match(
        r"A request, from image to text, takes 622 ms \(\d+–\d+\), 616 ms of it in generate\(\)\. Of generate\(\), "
        r"94\.5 % \(94\.\d–94\.\d\) is LLM decode; yet for ",
        first,
    )
    assert re.search(r"65\.0 % \(.+\) of generate\(\) the GPU only waits for the host\.$", first)
    assert re.match(
        r"One in twenty takes more than 786 ms \(\d+–\d+\): P95 is 1\.264× \(.+\) its median; "
        r"9\d\.\d % \(.+\) of its variance is generate\(\)\. Of generate\(\) itself: P95 is 1\.266× ",
        tail,
    )
    assert re.match(r"One more output token costs 20\.2 ms \(.+\), as much as 830 vision tokens \(.+\)\.$", token)


def test_three_claims_are_told_by_their_intervals(study: Path) -> None:
    write_json(study / "phase1" / "summary.json", summarise(study / "phase1"))
    (line,) = page_data(study)["claims"]["rows"]
    assert [cell["t"] for cell in line[1:]] == ["Cannot be told", "Holds", "Holds"]
    tail, share, tokens = (cell["sub"] for cell in line[1:])
    assert re.match(r"1\.264× \(1\.\d+–1\.\d+\) P95 over the median; 9\d\.\d % of the variance is generate\(\)", tail)
    assert re.match(r"96\.7 % \(.+\) of a request; the device waits for 65\.0 % of generate\(\)", share)
    assert re.match(r"830 \(\d+–1,\d+\) vision tokens an output token", tokens)


def test_the_first_screen_says_how_sure(tmp_path: Path) -> None:
    study = published.study(tmp_path / "study")
    for part, verdict in (("phase1", "clean"), ("phase2", "drift"), ("phase3", "drift")):
        summary = json.loads((study / part / "summary.json").read_text())
        summary["aa_check"]["verdict"] = verdict
        write_json(study / part / "summary.json", summary)
    (story,) = page_data(study)["stories"]
    cells = {cell["h"]: cell for cell in story["detail"]["quality"]}
    assert cells["Machine kept still"]["v"] == "warn", "the sweeps behind the price of a token drifted"
    assert re.search(r"price of a token drifted \(0\.\d+ and 0\.\d+\)", cells["Machine kept still"]["s"])
    assert cells["Cost of watching"]["t"].startswith("0.74 % (−")
    assert cells["Parts add up"]["v"] == "good"
    assert cells["Stopping rules"]["t"] == "unmet at 13 of 15 points"
    assert story["detail"]["command"].startswith("python -m vlmbench experiment=phase1 model=llava_1_5_7b")
    assert "output_dir" not in story["detail"]["command"]
    facts = dict(story["detail"]["facts"])
    assert facts["Machine"].startswith("NVIDIA H200")
    assert facts["Load"] == "batch 1: one request at a time"


def test_one_phase_alone_has_its_page(study: Path) -> None:
    for part, lacks in (("phase1", "No token count was swept"), ("phase3", "No data set was measured")):
        text = write_page(study / part).read_text(encoding="utf-8")
        assert lacks in text
    (story,) = page_data(study / "phase3")["stories"]
    said = plain(story["detail"]["answer"][0])
    assert re.match(r"One more output token costs 20\.2 ms \(.+\); vision tokens were not swept\.$", said)


def test_every_request_is_counted_where_not_all_are_kept(study: Path) -> None:
    run = study / "phase1"
    frame = load_runs(run)
    every, few = (requests_of(frame, run, limit=limit, gaps=20) for limit in (1000, 80))
    assert every is not None
    assert few is not None
    assert len(every["id"]) == every["total"] == 400
    assert every["said"] == ""
    assert len(few["id"]) < 260
    assert few["said"].startswith("All 400 requests are counted")
    assert max(few["ms"]) == max(every["ms"]), "the slowest is kept"
    for group in few["groups"]:
        assert sum(group["hist"]["counts"]) == group["n"] == 200
        assert group["curve"][-1] == [
            rounded(max(m for m, g in zip(every["ms"], every["group"], strict=True) if few["groups"][g] is group), 5),
            0,
        ]
    assert sum(gaps is not None for gaps in few["itl"]) <= 21
    assert {1} == {gaps[0] for gaps in few["itl"] if gaps}, "31 gaps stand one by one"
    assert all(len(gaps) == 32 for gaps in few["itl"] if gaps)


def test_rows_over_time_are_binned_and_failures_stay(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", started=1e9 + i) for i in range(500)]
    rows.append(row(sample="bad", status="error", reason="no image", started=1e9 + 250))  # type: ignore[arg-type]
    frame = load_runs(write(tmp_path, rows))
    lane = lane_of(frame, limit=100)
    assert lane is not None
    assert sum(one[5] for one in lane["bins"]) == 500
    assert lane["kind"].count(5) == 1
    assert lane["counts"] == [500, 0, 0, 0, 0, 1, 0]
    assert "501 rows" in lane["said"]
    whole = lane_of(frame, limit=1000)
    assert whole is not None
    assert whole["bins"] == []
    assert len(whole["at"]) == 501


def test_arms_of_a_comparison_are_groups_of_their_own(tmp_path: Path) -> None:
    arms = (("none", None, "baseline"), ("keep", "keep=0.5", "method"), ("random", "keep=0.5", "control"))
    rows = [
        row(f"dataset,method={a}", "s", repeat=i, started=1e9 + i)
        | {"intervention": a, "intervention_arguments": b, "intervention_role": c}
        for i in range(8)
        for a, b, c in arms
    ]
    run = write(tmp_path, rows)
    frame = load_runs(run)
    found = requests_of(frame, run, limit=100, gaps=10)
    assert found is not None
    assert [(g["name"], g["n"]) for g in found["groups"]] == [
        ("baseline", 8),
        ("keep keep=0.5", 8),
        ("random keep=0.5 (control)", 8),
    ]
    lane = lane_of(frame, limit=100)
    assert lane is not None
    assert lane["counts"][0] == 8
    assert lane["counts"][6] == 16


def test_a_server_without_stages_keeps_what_its_client_saw(tmp_path: Path) -> None:
    """No stage is made up: times of the whole, the first token and between tokens stand as they are."""
    rows = []
    for i in range(30):
        full = row(sample=f"s{i}", started=1e9 + i)
        rows.append({k: v for k, v in full.items() if not k.startswith("T_") or k in ("T_request", "T_total")})
    write_json(tmp_path / "summary.json", summarise(write(tmp_path, rows)))
    detail = page_data(tmp_path)["stories"][0]["detail"]
    requests = detail["parts"][0]["requests"]
    assert requests["stages"] == {}
    assert len(requests["ttft"]) == 30
    assert all(requests["itl"])
    assert "generate() is" not in plain(detail["answer"][0])
    assert "no stage times" in plain(detail["stages_said"][0])


def test_marked_runs_are_counted_once(tmp_path: Path) -> None:
    rows = [row(sample=f"s{i}", flags=("gc_pause", "throttled:sw_power_cap") if i < 3 else ()) for i in range(40)]
    write_json(tmp_path / "summary.json", summarise(write(tmp_path, rows)))
    cells = {cell["h"]: cell for cell in page_data(tmp_path)["stories"][0]["detail"]["quality"]}
    assert cells["Marked runs"]["t"] == "3 of 40"
    assert "throttled (sw power cap) 3" in cells["Marked runs"]["s"].lower()
    assert flag_name("throttled:power") == "throttled (power)"


def test_a_grid_stands_side_by_side_and_unlike_machines_are_named(tmp_path: Path) -> None:
    data = page_data(published.grid(tmp_path / "grid"))
    assert [len(story["detail"]["parts"]) for story in data["stories"]] == [1, 1, 1]
    assert len({story["label"] for story in data["stories"]}) == 3
    assert "differ in device" in data["overview"]["note"]
    assert "3 models" in data["title"]
    assert len(data["overview"]["rows"]) == 3


def test_runs_of_unlike_lengths_are_not_ranked_and_sweeps_say_whose_they_are(tmp_path: Path) -> None:
    """8 tokens in one runtime, 32 and the sweeps in another, six days apart."""
    published.unpack("archive/h200_llava_cudagraph/phase1", tmp_path / "graph")
    published.study(tmp_path / "eager")
    data = page_data([tmp_path / "graph", tmp_path / "eager"])
    lengths, token, differ = map(plain, data["overview_said"])
    assert lengths == "They answer with 8 and 32 output tokens, so their times are not compared."
    assert re.search(
        r"between tokens\) the fastest is cudagraph.+ \(6\.82 ms\), the slowest eager.+ \(18\.6 ms\)\.$", token
    )
    assert differ.startswith("These runs differ in output tokens (8, 32): ")
    assert differ.endswith("They were measured 5.8 days apart.")
    assert differ in data["claims"]["note"]
    assert "6.821–6.822" in [cell.get("sub") for cell in data["overview"]["rows"][0]], "ends of an interval differ"
    assert "token kinds cost differently: holds in 1 of 2 runs, not measured in 1." in data["claims"]["said"]
    graph, eager = (story["detail"] for story in data["stories"])
    assert plain(graph["sweeps_of"][0]).endswith("the prices here are of eager, sdpa attention.")
    assert eager["sweeps_of"] == []
    vision, output = data["cautions"]
    assert re.match(r"eager, .+, sweep of vision tokens: too noisy to tell whether it drifted \(A/A 0\.926, ", vision)
    assert "throttled in 88 of 96 runs, the line explains only 25.9 % of the variance" in vision
    assert "explains only" not in output
    assert re.search(
        r"P95 is 1\.270× \(.+\) its median; 97\.8 % \(.+\) of its variance is Preprocessing", plain(graph["answer"][1])
    )
    assert "P95 is 1.012×" in plain(graph["answer"][1])
    assert graph["quality"][0]["s"].startswith("A/A check, halves of the workload, which are different samples")
    page = write_page(tmp_path, [tmp_path / "graph", tmp_path / "eager"])
    assert "<b>Caution:</b> eager" in page.read_text(encoding="utf-8")


def test_two_sweeps_of_one_model_in_two_runtimes_are_two_stories(tmp_path: Path) -> None:
    eager = published.unpack("archive/h200_llava_eager/phase3", tmp_path / "eager" / "phase3")
    compiled = published.unpack("h200_llava_compiled/phase3", tmp_path / "compiled" / "phase3")
    stories = stories_of(parts_of([eager.parent, compiled.parent]))
    assert [story.label for story in stories] == ["eager, sdpa attention", "compiled, sdpa attention"]


def test_a_run_of_another_version_is_left_out_aloud(tmp_path: Path) -> None:
    published.unpack("archive/h200_gemma3_eager/phase1", tmp_path / "good")
    (tmp_path / "old").mkdir()
    write_json(tmp_path / "old" / "summary.json", {"experiment_name": "phase2_scaling", "headline": {}})
    (note,) = page_data(tmp_path)["notes"]
    assert "another version wrote it" in note
    assert note.startswith("Left out: ")
    with pytest.raises(InputError, match="another version wrote it"):
        page_data(tmp_path / "old")


@pytest.mark.slow
def test_a_thousand_models_stay_below_the_limit_and_the_page_says_how(tmp_path: Path) -> None:
    source = published.unpack("archive/h200_gemma3_eager/phase1", tmp_path / "source")
    for i in range(1000):
        published.renamed(source, tmp_path / "grid" / f"m{i:04d}", name=f"model-{i:04d}", architecture=f"A{i}")
    data = page_data(tmp_path / "grid", most_bytes=400_000)
    assert len(data["stories"]) == len(data["overview"]["rows"]) == 1000
    detailed = [story for story in data["stories"] if story["detail"]]
    assert 0 < len(detailed) < 1000
    assert any(f"{len(detailed):,} of 1,000 runs are here in detail" in note for note in data["notes"])
    text = write_page(tmp_path, tmp_path / "grid").read_text(encoding="utf-8")
    assert len(text.encode()) < 10_000_000
    assert "model-0999" in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    source = published.unpack("archive/h200_gemma3_eager/phase1", tmp_path / "source")
    evil = '</script><script>alert("1")</script>'
    for i, name in enumerate((evil, "נמל־שפה \u202eגדול", r"50 % of $x_1$ & \textbf{y}", "a" * 400)):
        published.renamed(source, tmp_path / "grid" / f"m{i}", name=name)
    text = write_page(tmp_path / "grid").read_text(encoding="utf-8")
    assert text.count("<script") == 3, "theme, data, script"
    assert text.count("</script>") == 3
    assert "alert(&#34;1&#34;)" in text
    start = text.index('id="data">') + len('id="data">')
    data = json.loads(text[start : text.index("</script>", start)])
    assert data["stories"][0]["model"].startswith(evil)
    assert "<" not in text[start : text.index("</script>", start)]


def test_single_samples_and_nothing_measured_are_said(tmp_path: Path) -> None:
    for name, rows in (("one", [row()]), ("none", [row(status="error", reason="no image")])):  # type: ignore[arg-type]
        write_json(tmp_path / name / "summary.json", summarise(write(tmp_path / name, rows)))
    one = [plain(line) for line in page_data(tmp_path / "one")["stories"][0]["detail"]["answer"]]
    assert "no interval: needs 6 requests, and there is 1" in one[0]
    assert one[1].startswith("The tail cannot be told: the slowest of 1 request took ")
    none = [plain(line) for line in page_data(tmp_path / "none")["stories"][0]["detail"]["answer"]]
    assert none == ["Nothing could be measured.", "1 row error: no image."]
    for name in ("one", "none"):
        assert "nan" not in write_page(tmp_path / name).read_text(encoding="utf-8").lower().replace("provenance", "")


def test_effective_n_is_shown_where_the_summary_has_it(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path, usual(60, 40)))
    write_json(tmp_path / "summary.json", summary)
    entry = summary["distribution"]["T_request"]["workload"]
    entry.pop("effective_n", None)
    write_json(tmp_path / "summary.json", summary)
    assert "Independent runs" not in [q["h"] for q in page_data(tmp_path)["stories"][0]["detail"]["quality"]]
    entry |= {"effective_n": 21.4, "lag1": 0.47}
    write_json(tmp_path / "summary.json", summary)
    (cell,) = [q for q in page_data(tmp_path)["stories"][0]["detail"]["quality"] if q["h"] == "Independent runs"]
    assert cell["t"] == "60 are worth 21"
    assert "correlation of neighbours 0.47" in cell["s"]
    summary["stopping"] = [{"point_id": "dataset", "measured": 60, "ended_by": "all_measured", "unmet": []}]
    summary["precision"] = {
        "points": [{"point_id": "dataset", "reach": 0.021}, {"point_id": "reference", "reach": None}]
    }
    write_json(tmp_path / "summary.json", summary)
    (cell,) = [q for q in page_data(tmp_path)["stories"][0]["detail"]["quality"] if q["h"] == "Stopping rules"]
    assert cell["s"].endswith("known to ±2.1 % or better at 1 of 2 points, without interval elsewhere.")


def test_interventions_where_a_summary_has_them(tmp_path: Path) -> None:
    summary = summarise(write(tmp_path, usual(60, 40)))
    summary["interventions"] = [
        {
            "arm": "keep half",
            "saved_ms": 7.1,
            "low": 4.9,
            "high": 9.3,
            "predicted_ms": 30.0,
            "verdict": "saves less than promised",
        },
        {"arm": "random half", "saved_ms": 7.4, "low": 5.2, "high": 9.5, "control": True},
    ]
    write_json(tmp_path / "summary.json", summary)
    data = page_data(tmp_path)
    assert [arm["control"] for arm in data["arms"]] == [False, True]
    assert [t["name"] for t in data["compared"]] == ["interventions"]
    assert data["compared"][0]["rows"][0][-1]["v"] == "good"
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "What would help?" in text
    assert "random half (control)" in text


def test_the_first_screen_of_a_comparison_of_methods_names_method_and_control(tmp_path: Path) -> None:
    rows = [
        {"arm": "keep half", "saved_ms": 7.1, "low": 4.9, "high": 9.3, "verdict": "faster"},
        {"arm": "keep most", "saved_ms": 1.0, "low": -1.0, "high": 3.0},
        {"arm": "random half", "saved_ms": 7.4, "low": 5.2, "high": 9.5, "control": True},
    ]
    part = Part(name=".", directory=tmp_path, summary={"experiment_name": "interventions", "interventions": rows})
    method, control = (plain(sentence) for sentence in saved(part))
    assert method == "Most is saved by keep half: 7.10 ms (4.90–9.30) of generate(), faster."
    assert control.startswith("Of the controls, which cost no thought, by random half: 7.40 ms (5.20–9.50)")
    assert saved(Part(name=".", directory=tmp_path, summary={})) == []


def test_a_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", summarise(write(tmp_path, [row()])))
    part = parts_of(tmp_path)[0]
    session = {
        "command": ["vlmbench", "experiment=phase1", "sweep.axes.vision_tokens=[1,2]", "name=it's", "output_dir=x"]
    }
    with_command = type(part)(name=".", directory=tmp_path, summary=part.summary, provenance={"sessions": [session]})
    assert (
        command(with_command)
        == r"""python -m vlmbench experiment=phase1 'sweep.axes.vision_tokens=[1,2]' 'name=it'\''s'"""
    )


def test_loads_of_a_server_have_their_section_and_the_first_words(tmp_path: Path) -> None:
    """Three loads are never pooled into one latency; what the server gave under each is a mark and a line."""
    directory = published.served(tmp_path / "served")
    data = page_data(directory)
    assert data["claims"] is None
    detail = data["stories"][0]["detail"]
    waiting, given, within = map(plain, detail["answer"])
    assert "first token comes after 40.0 ms" in waiting
    assert "with 1 user; after 400 ms" in waiting
    assert "with 16 users" in given
    assert "Within TTFT ≤ 100 ms most are answered with 4 users" in within
    (part,) = detail["parts"]
    assert [point["short"] for point in part["loads"]["points"]] == ["1 user", "4 users", "16 users"]
    assert part["loads"]["points"][0]["at"]["TTFT_p50"][0] == 40
    assert [group["name"] for group in part["requests"]["groups"]] == ["1 user", "4 users", "16 users"]
    assert part["lane"]["what"] == "the whole request"
    (loads,) = [table for table in detail["tables"] if table["name"] == "loads"]
    assert len(loads["rows"]) == 3
    assert dict(detail["facts"])["Load"] == "swept: each load has its own figures"
    assert {path.stem for path in (directory / "figures").glob("*.png")} == {"pareto", "ttft_throughput", "run_lane"}
    assert "absent here, not zero" in plain(detail["loads_said"][0])


def test_loads_beside_which_one_request_is_repeated_are_not_pooled_either(tmp_path: Path) -> None:
    """The page said that they are not pooled, and drew them so; the terminal and the tables had one median of all.

    A repeated request counts as one at every load.
    """
    directory = published.served(tmp_path / "served")
    shutil.rmtree(directory / "tables")
    rows = [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]
    repeated = [row | {"point_id": row["point_id"].replace("dataset", "reference"), "sample_id": "s0"} for row in rows]
    repeated = [row | {"repeat": number} for number, row in enumerate(repeated)]
    (directory / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *repeated]))
    said = " ".join(write_report("phase1", directory).split())
    part = page_data(directory)["stories"][0]["detail"]["parts"][0]
    assert [group["name"] for group in part["requests"]["groups"]] == ["1 user", "4 users", "16 users"]
    assert dict(zip(part["lane"]["names"], part["lane"]["counts"], strict=True))["one request repeated"] == len(rows)
    assert "There the first token comes after 400 ms, a request takes 500 ms, at the median." in said
    assert "Each load has a distribution of its own; they are not pooled." in said
    assert "at the median of" not in said
    assert "Latency, ms" not in said
    assert not (directory / "tables" / "latency.md").exists()


def test_a_load_is_named_as_it_was_asked_for() -> None:
    serving = {"load": {"name": "open", "rate_per_s": None, "arrivals": "poisson"}}
    point = {"point_id": "dataset,load.rate_per_s=5", "axis_load.rate_per_s": 5.0}
    assert load_name(serving, point) == "Requests with 5 arrivals a second"
    assert load_name(serving, point | {"axis_load.rate_per_s": 2.5}) == "Requests with 2.5 arrivals a second"
    assert point_words("load.rate_per_s=2.5") == "2.5 arrivals a second"
    assert point_words("load.concurrency=1") == "1 user"


def test_what_saves_most_is_said_with_its_verdict_where_it_has_no_interval(tmp_path: Path) -> None:
    """``0.725 ms ().``"""
    arm = {"arm": "mine (scale=1)", "saved_ms": 0.725, "low": None, "high": None, "verdict": "too few pairs"}
    part = Part(name=".", directory=tmp_path, summary={"interventions": [arm]}, provenance={})
    (sentence,) = compared.said([part])
    assert plain(sentence) == "Most is saved by mine (scale=1): 0.725 ms of generate(), too few pairs."


def test_the_precision_that_was_asked_for_is_not_said_to_be_reached() -> None:
    def said(*unmet: str) -> str:
        points = [
            {"point_id": str(i), "unmet": [one, "noise_variation (80.1 % of 5 %)"]} for i, one in enumerate(unmet)
        ]
        return str(
            _stopping(Story(facts={}, parts=[Part(name=".", directory=Path(), summary={"stopping": points})]))["s"]
        )

    none, reached = "median_interval (no interval yet of ±1 %)", "median_interval (±{} % of ±1 %)"
    assert said(none, none).endswith("asked for (no interval yet at any of them).")
    assert said(none, reached.format("3.34"), reached.format("25.10")).endswith(
        "(reached: ±3.34 to ±25.1 %; no interval yet at 1 of them)."
    )
    assert said(reached.format("3.34")).endswith("(reached: ±3.34 %).")
    nothing = "median_interval (the median is 0 of ±1 %)"
    assert said(nothing).endswith("(a median of 0, of which there are no shares, at all of them).")
    assert said(nothing, none).endswith("at 1 of them; a median of 0, of which there are no shares, at 1 of them).")


def test_one_slowest_request_is_one(tmp_path: Path) -> None:
    slow = {"sample_id": "a", "T_total": 79.3, "over_median": 11.6, "cause": "jitter"}
    summary = {"tail": {"metric": "T_total", "slow_requests": [slow], "flags": [], "slow_runs": 1}}
    found = tail.slowest(Part(name=".", directory=tmp_path, summary=summary))
    assert found is not None
    assert found["caption"] == "The slowest request, by the time of generate()"
    assert tail._marks(summary["tail"])["s"].startswith("Not even the slowest run carries a mark")


def test_a_page_explains_what_it_shows_and_nothing_else(study: Path, tmp_path: Path) -> None:
    """No lane of the device without traces, no repeated request where none was; numbers are held to their units."""
    served = write_page(published.served(tmp_path / "served")).read_text(encoding="utf-8")
    shown = write_page(study).read_text(encoding="utf-8")
    for words in ("The lane beneath is the device", "the repeated request would be much narrower"):
        assert words in shown
        assert words not in served
    visible = shown.partition('<section id="provenance"')[0].partition("<body>")[2]
    assert re.findall(r"[^<>]{12}\d (?:%|ms)(?![\w-])", visible) == []


def test_a_share_that_cannot_be_measured_is_said_so() -> None:
    """A sum of squares without bias may be negative: no share of a variance is."""
    rows = [
        {"source": "num_prompt_tokens", "share": -0.0048, "low": -0.0089, "high": 0.0128},
        {"source": "rest", "share": 1.0048, "low": 0.987, "high": 1.01},
    ]
    part = Part(name=".", directory=Path(), summary={"tail": {"variance_split": rows, "metric": "T_total"}})
    workload, *_, rest = tail.causes(part)
    assert workload["t"] == "nothing"
    assert "not measurable, at most 1.28 %" in workload["s"]
    assert rest["t"] == "100 %"
    assert "(98.7–100)" in rest["s"]
