from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.analysis.made import row, usual, write
from vlmbench.analysis.frames import load_runs
from vlmbench.analysis.tail import cause_counts, slow_requests, variance_split
from vlmbench.schema import Status


def planted(n: int = 600, *, jitter: float = 0.0, seed: int = 0):
    """T_total = 0.1 ms a vision token + 0.5 ms a prompt token + 10 ms an output token + jitter; counts independent."""
    noise = random.Random(seed)
    for i in range(n):
        vision, prompt, output = noise.choice([64, 256, 576, 1024]), noise.randint(10, 60), noise.randint(2, 20)
        yield row(
            sample=f"s{i}", tokens=(vision, prompt), gaps=[10.0] * (output - 1),
            prefill=20 + 0.1 * vision + 0.5 * prompt + noise.gauss(0, jitter),
        )  # fmt: skip


def test_variance_is_split_as_planted(tmp_path: Path) -> None:
    split = variance_split(load_runs(write(tmp_path, planted(4000, jitter=30)))).set_index("source")
    vision = 0.01 * sum((v - 480) ** 2 for v in (64, 256, 576, 1024)) / 4
    prompt, output, jitter = 0.25 * (51**2 - 1) / 12, 100 * (19**2 - 1) / 12, 900
    whole = vision + prompt + output + jitter
    for name, part in (
        ("num_vision_tokens", vision),
        ("num_prompt_tokens", prompt),
        ("num_output_tokens", output),
        ("rest", jitter),
    ):
        assert split.loc[name, "share"] == pytest.approx(part / whole, abs=0.03)
        assert split.loc[name, "low"] <= split.loc[name, "share"] <= split.loc[name, "high"]
    assert split["share"].sum() == pytest.approx(1)


def test_everything_explained(tmp_path: Path) -> None:
    split = variance_split(load_runs(write(tmp_path, planted(200)))).set_index("source")
    assert split.loc["rest", "share"] == pytest.approx(0, abs=1e-6)


def test_constant_counts_explain_nothing(tmp_path: Path) -> None:
    noise = random.Random(1)
    rows = [row(sample=f"s{i}", prefill=20 + noise.gauss(0, 1)) for i in range(100)]
    split = variance_split(load_runs(write(tmp_path, rows))).set_index("source")
    assert split.loc["num_output_tokens", "note"] == "the same in every request"
    assert split.loc["rest", "share"] == pytest.approx(1)


def test_correlated_counts_share_what_they_explain(tmp_path: Path) -> None:
    noise = random.Random(1)
    rows = []
    for i in range(300):
        tokens = noise.randint(2, 30)
        rows.append(row(sample=f"s{i}", tokens=(576, 10 * tokens), gaps=[10.0] * tokens))
    split = variance_split(load_runs(write(tmp_path, rows))).set_index("source")
    assert split.loc["num_prompt_tokens", "share"] == pytest.approx(0.5, abs=1e-6)
    assert split.loc["num_output_tokens", "share"] == pytest.approx(0.5, abs=1e-6)


def test_reference_jitter_stands_beside(tmp_path: Path) -> None:
    noise = random.Random(5)
    rows = list(planted(400, jitter=5)) + [
        row("reference", "r", repeat=i, prefill=20 + noise.gauss(0, 5)) for i in range(400)
    ]
    split = variance_split(load_runs(write(tmp_path, rows))).set_index("source")
    assert split.loc["reference_jitter", "share"] == pytest.approx(split.loc["rest", "share"], rel=0.35)


def test_too_few_or_all_equal_say_nothing(tmp_path: Path) -> None:
    assert variance_split(load_runs(write(tmp_path, planted(19)))).empty
    assert variance_split(load_runs(write(tmp_path, [row(sample=f"s{i}") for i in range(50)]))).empty


def test_slowest_requests_carry_their_planted_cause(tmp_path: Path) -> None:
    noise = random.Random(8)
    rows = [
        row(sample=f"s{i}", gaps=[10.0] * noise.randint(2, 6), prefill=20 + noise.gauss(0, 0.2)) for i in range(990)
    ]
    rows += [row(sample=f"long{i}", gaps=[10.0] * 60) for i in range(6)]
    rows += [
        row(sample=f"pause{i}", gaps=[10.0] * 3, prefill=900.0, flags=("gc_pause", "residual_above_goal"))
        for i in range(3)
    ]
    rows += [row(sample="odd", gaps=[10.0] * 3, prefill=800.0)]
    rows += [row("reference", "r", repeat=i, prefill=20 + noise.gauss(0, 0.2)) for i in range(50)]
    slow = slow_requests(load_runs(write(tmp_path, rows)))
    causes = dict(zip(slow["sample_id"], slow["cause"], strict=True))
    assert {causes[f"pause{i}"] for i in range(3)} == {"gc_pause"}
    assert {causes[f"long{i}"] for i in range(6)} == {"tokens"}
    assert causes["odd"] == "unknown"
    assert cause_counts(slow) == {"tokens": 6, "gc_pause": 3, "unknown": 1}
    assert slow["T_total"].is_monotonic_decreasing
    assert slow.attrs["slow_runs"] == 10


def test_jitter_is_named_when_a_repeated_request_does_the_same(tmp_path: Path) -> None:
    noise = random.Random(8)
    rows = [row(p, f"{p}{i}" if p == "dataset" else "r", repeat=i, prefill=20 + noise.expovariate(1))
            for i in range(200) for p in ("dataset", "reference")]  # fmt: skip
    slow = slow_requests(load_runs(write(tmp_path, rows)))
    assert set(slow["cause"]) <= {"jitter", "unknown"}
    assert "jitter" in set(slow["cause"]) or slow["over_median"].min() > 4


def test_list_is_bounded_and_the_count_is_not(tmp_path: Path) -> None:
    slow = slow_requests(load_runs(write(tmp_path, [row(sample=f"s{i}") for i in range(100)])), most=7)
    assert len(slow) == 7
    assert slow.attrs["slow_runs"] == 100


@pytest.mark.parametrize("rows", [[row()], [row(status=Status.ERROR, reason="x")]])
def test_degenerate(tmp_path: Path, rows) -> None:
    frame = load_runs(write(tmp_path, rows))
    assert variance_split(frame).empty
    assert len(slow_requests(frame)) <= 1


def test_usual_run(tmp_path: Path) -> None:
    slow = slow_requests(load_runs(write(tmp_path, usual())))
    assert cause_counts(slow)["gc_pause"] == 4
