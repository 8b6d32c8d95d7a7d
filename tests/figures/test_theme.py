from __future__ import annotations

import gc
import weakref
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from vlmbench.figures.theme import (
    COMPONENT_COLOURS,
    COMPONENT_LABELS,
    caption,
    component_colour,
    new_figure,
    save,
    theme,
)

PROVENANCE = {
    "model": {"name": "LLaVA-1.5-7B", "weights": "random"},
    "device": {"type": "cuda", "name": "NVIDIA H200"},
    "runtime": {"dtype": "torch.bfloat16", "attention": "sdpa", "compile": False},
    "dataset": {"name": "vqa_v2"},
}


def test_caption_names_model_weights_device_dtype_runtime_and_n() -> None:
    text = caption(PROVENANCE, n=2000)
    assert (
        text
        == "LLaVA-1.5-7B (random weights) · NVIDIA H200 · bfloat16 · eager, sdpa attention · vqa_v2 · n = 2,000 requests"
    )


@pytest.mark.parametrize("shared", [{"devices": 2, "processes": 1}, {"devices": 2, "processes": 2}, {"processes": 2}])
def test_caption_says_that_several_devices_share_the_model(shared: dict[str, int]) -> None:
    assert " · 2 × NVIDIA H200 · " in caption({**PROVENANCE, "runtime": shared})


def test_caption_leaves_out_what_is_not_known() -> None:
    assert caption({}) == "unnamed model · eager"
    assert "random" not in caption({"model": {"name": "m", "weights": "pretrained"}})


def test_save_writes_whole_files_of_enough_pixels(tmp_path: Path) -> None:
    with theme():
        figure = new_figure("title", "caption", width=4, height=3)
        figure.subplots().plot([1, 2], [3, 4])
    png, pdf = save(figure, tmp_path / "figures", "plot")
    with Image.open(png) as image:
        assert image.size == (800, round(200 * (3 + 2 * 12 / 72 + 1.25 * 8 / 72)))
    assert pdf.read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in png.parent.iterdir()) == ["plot.pdf", "plot.png"]
    first = pdf.read_bytes()
    save(figure, tmp_path / "figures", "plot")
    assert pdf.read_bytes() == first


def test_a_long_caption_is_broken_and_the_pdf_holds_the_small_font(tmp_path: Path) -> None:
    with theme():
        figure = new_figure("title", "a long caption " * 12 + "\nnote", width=5, height=3)
        figure.subplots().plot([1, 2])
    lines = figure.get_supxlabel().split("\n")
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    _, pdf = save(figure, tmp_path, "plot")
    assert b"DejaVuSansFigures" in pdf.read_bytes()
    assert pdf.stat().st_size < 40_000
    assert figure.get_layout_engine() is not None, "a figure that is saved can still be changed and laid out"


def test_save_leaves_the_old_file_and_no_part_when_drawing_fails(tmp_path: Path) -> None:
    with theme():
        figure = new_figure("t")
        figure.subplots().set_xlabel("$\\frac{$")  # mathtext that cannot be parsed
    (tmp_path / "plot.png").write_bytes(b"old")
    with pytest.raises(ValueError, match="frac"):
        save(figure, tmp_path, "plot")
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]
    assert (tmp_path / "plot.png").read_bytes() == b"old"


def test_figures_leave_nothing_behind_and_settings_come_back() -> None:
    before = dict(mpl.rcParams)
    with theme():
        figure = new_figure("t")
        figure.subplots().plot([1, 2])
    ghost = weakref.ref(figure)
    del figure
    gc.collect()
    assert ghost() is None
    assert dict(mpl.rcParams) == before


def test_every_component_has_colour_and_label() -> None:
    assert set(COMPONENT_COLOURS) == set(COMPONENT_LABELS)
    assert component_colour("T_vision_encoder") == component_colour("vision_encoder")
    assert component_colour("unheard_of") == component_colour("other")
