"""Closed forms: properties, and figures that a pencil gives."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cost.dims import FAMILIES, NAMES, config_of, counts_of
from vlmbench.cost.decoder_formula import ClosedForm, Decoder, Experts, decoder_of
from vlmbench.cost.stage_costs import ClosedFormError, StageFlops, agreement, disagreements
from vlmbench.cost.vision_formula import Tower, nearest_grids
from vlmbench.request import TokenCounts

DENSE = Decoder(hidden=8, intermediate=16, layers=3, heads=4, kv_heads=2, head_dim=2, vocab=11)


def test_dense_decoder_by_hand():
    # per layer: q and o 8*8 each, k and v 8*4 each, three matrices of 8*16
    matrices = 3 * (2 * 64 + 2 * 32 + 3 * 128)
    assert DENSE.prefill(5) == 2 * 5 * matrices + 3 * 4 * 5 * 5 * 8
    assert DENSE.step(6) == 2 * matrices + 2 * 88 + 3 * 4 * 6 * 8


def test_experts_by_hand():
    sparse = dataclasses.replace(
        DENSE, experts=Experts(count=6, active=2, intermediate=4, shared_intermediate=0, layers=3)
    )
    per_token = 3 * (2 * 64 + 2 * 32 + 2 * 3 * 8 * 4 + 8 * 6)
    assert sparse.prefill(5) == 2 * 5 * per_token + 3 * 4 * 5 * 5 * 8


@given(
    tokens=st.integers(1, 300),
    output=st.integers(1, 120),
    windows=st.lists(st.one_of(st.none(), st.integers(1, 400)), min_size=3, max_size=3),
    cross=st.integers(0, 50),
)
def test_decode_is_the_sum_of_its_steps(tokens, output, windows, cross):
    decoder = dataclasses.replace(DENSE, layers=4, cross_layers=1, windows=tuple(windows))
    steps = sum(decoder.step(length, cross) for length in range(tokens + 1, tokens + output))
    assert decoder.decode(tokens, output, cross) == steps


@given(height=st.integers(1, 40), width=st.integers(1, 40), window=st.integers(1, 12))
def test_windows_never_cost_more_than_full_attention(height, width, window):
    tower = Tower(hidden=8, intermediate=16, layers=2, attention_width=8, patch_elements=12, merge=1)
    windowed = dataclasses.replace(tower, windowed_layers=2, window=window)
    full, cut = tower.flops_of_grids([(height, width)]), windowed.flops_of_grids([(height, width)])
    assert cut <= full
    assert (cut == full) == (window >= max(height, width))


def test_window_pairs_by_hand():
    # 5 x 3 patches in windows of 2: rows 2+2+1, columns 2+1
    tower = Tower(
        hidden=8, intermediate=16, layers=1, attention_width=8, patch_elements=12, windowed_layers=1, window=2
    )
    sizes = [r * c for r in (2, 2, 1) for c in (2, 1)]
    assert tower.flops_of_grids([(5, 3)]) == 2 * 15 * tower.elements + 4 * 8 * sum(n * n for n in sizes)


@given(images=st.integers(1, 5), cells=st.integers(1, 400), merge=st.sampled_from([1, 2]))
def test_nearest_grids_keep_the_patches(images, cells, merge):
    patches = cells * merge * merge
    if cells < images:
        with pytest.raises(ClosedFormError):
            nearest_grids(patches, images, merge)
        return
    grids = nearest_grids(patches, images, merge)
    assert len(grids) == images
    assert sum(h * w for h, w in grids) == patches
    assert all(h % merge == 0 and w % merge == 0 for h, w in grids)


def test_grids_that_do_not_divide_are_refused():
    with pytest.raises(ClosedFormError, match="give 'grids'"):
        nearest_grids(6, 1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_is_linear_and_text_has_no_vision(name):
    closed = ClosedForm.of(config_of(name))
    counts = dataclasses.replace(counts_of(name), num_input_tokens=100)
    assert closed.flops(counts, 9, batch_size=3).total == 3 * closed.flops(counts, 9).total
    text = TokenCounts(num_input_tokens=100, num_prompt_tokens=100, num_vision_tokens=0)
    bare = closed.flops(text, 9)
    assert (bare.vision_encoder, bare.projector) == (0, 0)
    assert closed.flops(counts, 1).llm_decode == 0


@pytest.mark.parametrize("name", NAMES)
def test_more_tokens_cost_more(name):
    closed = ClosedForm.of(config_of(name))
    small, large = (dataclasses.replace(counts_of(name), num_input_tokens=n) for n in (100, 200))
    assert closed.flops(large, 8).llm_prefill > closed.flops(small, 8).llm_prefill
    assert closed.flops(large, 8).llm_decode > closed.flops(small, 8).llm_decode
    assert closed.flops(large, 8).vision_encoder == closed.flops(small, 8).vision_encoder


def test_unknown_vision_part_is_named():
    from transformers import AutoConfig

    with pytest.raises(ClosedFormError, match="vision part of 'glm4v'"):
        ClosedForm.of(AutoConfig.for_model("glm4v"))


def test_linear_attention_is_refused():
    from transformers import AutoConfig

    with pytest.raises(ClosedFormError, match="linear_attention"):
        decoder_of(AutoConfig.for_model("qwen3_next"))


def test_missing_counts_are_named():
    closed = ClosedForm.of(config_of("qwen2-vl-2b"))
    counts = TokenCounts(num_input_tokens=9, num_prompt_tokens=9, num_vision_tokens=4, num_images=1)
    with pytest.raises(ClosedFormError, match="num_vision_patches"):
        closed.flops(counts, 2)
    with pytest.raises(ValueError, match="'output_tokens' must be 1 or more"):
        closed.flops(counts, 0)


def test_agreement():
    one = StageFlops(vision_encoder=100, projector=0, llm_prefill=200, llm_decode=0)
    two = StageFlops(vision_encoder=102, projector=0, llm_prefill=200, llm_decode=5)
    found = agreement(one, two)
    assert found["vision_encoder"] == pytest.approx(0.02)
    assert found["projector"] is None
    assert found["llm_decode"] == float("inf")
    assert set(disagreements(found)) == {"vision_encoder", "llm_decode", "total"}
    assert one.columns("_closed")["flops_total_closed"] == 300
