import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "dataset").glob("*.yaml"))


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+dataset={name}", *overrides]).dataset


@pytest.mark.parametrize("name", NAMES)
def test_every_knob_stands_in_the_yaml_and_only_knobs(name):
    config = composed(name)
    target = get_class(config._target_)
    assert {f.name for f in dataclasses.fields(target)} == set(config) - {"_target_"}
    schema = OmegaConf.structured(target)
    OmegaConf.merge(schema, OmegaConf.masked_copy(config, [key for key in config if key != "_target_"]))
    dataset = instantiate(config)
    assert isinstance(dataset.name, str)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.seed = 1


def test_a_wrong_type_is_refused_by_the_schema():
    for name in NAMES:
        schema = OmegaConf.structured(get_class(composed(name)._target_))
        with pytest.raises(OmegaConfBaseException):
            OmegaConf.merge(schema, {"num_samples": "many"})
        with pytest.raises(OmegaConfBaseException):
            OmegaConf.merge(schema, {"num_sample": 3})


def test_presets_change_what_they_say():
    assert composed("vqa_v2_molmo").prompt == "vqa2: {question}"
    assert composed("vqa_v2_molmo").split == composed("vqa_v2").split == "val"
    assert composed("vqa_v2_hub").path == "lmms-lab/VQAv2"
    assert composed("vqa_v2", r'dataset.prompt="{question}\nShort."').prompt == r"{question}\nShort."


@pytest.mark.parametrize("name", NAMES)
def test_configuring_imports_neither_torch_nor_datasets_nor_numpy(name):
    module = get_class(composed(name)._target_).__module__
    code = f"import sys, {module}; print([m for m in ('torch', 'datasets', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_data_set_opens_as_it_is():
    assert len(instantiate(composed("synthetic_vqa")).open()) == composed("synthetic_vqa").num_samples
