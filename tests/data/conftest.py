import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_vqa_layout.py"


@pytest.fixture(scope="session")
def layout_script():
    """scripts/make_vqa_layout.py as a module."""
    if not SCRIPT.is_file():
        pytest.skip("scripts/ is not part of this distribution")
    spec = importlib.util.spec_from_file_location("make_vqa_layout", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def layouts(layout_script, tmp_path_factory):
    """Layout name -> folder with the same 12 photographs and 46 questions; read only."""
    base = tmp_path_factory.mktemp("vqa")
    for layout in ("folders", "zips", "molmo"):
        layout_script.write(base / layout, layout)
    # Molmo's own loader wants everything as zips in its folder of downloads.
    downloads = base / "molmo_zips" / "torch_datasets" / "downloads"
    layout_script.write(downloads, "zips")
    return {layout: base / layout for layout in ("folders", "zips", "molmo", "molmo_zips")}
