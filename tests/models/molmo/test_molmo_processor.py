from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmbench.errors import SampleError, UnreachablePointError
from vlmbench.models.molmo import MolmoImageProcessor, MolmoProcessor
from vlmbench.models.molmo.processing import format_prompt
from vlmbench.models.offline_tokenizer import build_tokenizer

SPECIAL = {"<im_start>": 900, "<im_end>": 901, "<im_patch>": 902, "<im_col>": 903}


def make(special: dict[str, int] | None = None, **roles: str) -> MolmoProcessor:
    tokens = {"<|endoftext|>": 5, "<|pad|>": 1, **(SPECIAL if special is None else special)}
    tokenizer = build_tokenizer(size=904, special_tokens=tokens, roles=roles or {"eos_token": "<|endoftext|>"})
    return MolmoProcessor(image_processor=MolmoImageProcessor(), tokenizer=tokenizer)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_layout_of_a_prompt() -> None:
    processor = make()
    made = processor(images=picture(640, 480), text="What is it?")
    ids = made["input_ids"][0]
    text = processor.tokenizer(" User: What is it? Assistant:", add_special_tokens=False)["input_ids"]
    assert ids[0] == 5  # EOS, for want of a BOS
    assert ids[1] == 900
    assert ids[741:].tolist() == text
    assert (ids == 902).sum() == 704
    assert made["pixel_values"].shape == (1, 7, 576, 588)
    positions = made["image_input_idx"]
    assert set(ids[positions[positions >= 0]].tolist()) == {902}
    assert made["attention_mask"].all()
    assert set(made) == set(processor.model_input_names)


def test_a_finished_prompt_is_left_alone() -> None:
    processor = make()
    bare, finished = processor(text="Why?"), processor(text=format_prompt("Why?"))
    assert torch.equal(bare["input_ids"], finished["input_ids"])
    assert "pixel_values" not in bare
    assert processor.tokenizer.decode(bare["input_ids"][0, 1:]) == " User: Why? Assistant:"


@pytest.mark.parametrize("token", list(SPECIAL))
def test_image_tokens_in_a_text_are_refused(token: str) -> None:
    processor = make()
    for image in (None, picture(50, 50)):
        with pytest.raises(SampleError, match=token):
            processor(images=image, text=f"What is {token}?")


def test_unusual_texts() -> None:
    """Nothing, blanks, other special tokens, the prompt's own words, other scripts: text like any other."""
    processor = make()
    for text in ("", " ", "a\nb", "<|endoftext|>", "<|image|>", "<image>", "Assistant: User:", "é漢字🙂", "x" * 5000):
        made = processor(images=picture(50, 50), text=text)
        ids = made["input_ids"][0]
        want = processor.tokenizer(f" User: {text} Assistant:", add_special_tokens=False)["input_ids"]
        assert ids[317:].tolist() == want
        assert (ids == 902).sum() == (made["image_input_idx"] >= 0).sum() == 288


def test_ids_are_the_tokenizers() -> None:
    special = {"<im_col>": 10, "<im_patch>": 11, "<im_start>": 12, "<im_end>": 13, "<s>": 2}
    processor = make(special, eos_token="<|endoftext|>", bos_token="<s>", pad_token="<|pad|>")
    ids = processor(images=[picture(30, 30), None], text=["a", "b"])["input_ids"]
    assert ids[0, :4].tolist() == [2, 12, 11, 11]
    assert ids[1, 0] == 1
    assert processor.image_token_id == 11


def test_batches_are_padded_on_the_left_and_positions_move_along() -> None:
    processor = make()
    images, texts = [picture(640, 480), picture(100, 300), None], ["one", "two words here", "three"]
    batch = processor(images=images, text=texts)
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        alone = processor(images=image, text=text)
        start = batch["input_ids"].shape[1] - alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, start:], alone["input_ids"][0])
        assert batch["attention_mask"][row].tolist() == [0] * start + [1] * (batch["input_ids"].shape[1] - start)
        if image is None:
            assert (batch["image_input_idx"][row] < 0).all()
            continue
        crops = alone["pixel_values"].shape[1]
        positions = alone["image_input_idx"][0]
        moved = torch.where(positions >= 0, positions + start, positions)
        assert torch.equal(batch["image_input_idx"][row, :crops], moved)
        assert (batch["image_input_idx"][row, crops:] == -1).all()
    right = processor(images=images, text=texts, padding_side="right")
    assert right["attention_mask"][1, 0] == 1
    assert right["attention_mask"][1, -1] == 0


def test_padding_to_a_length() -> None:
    processor = make()
    made = processor(text="hello", padding="max_length", max_length=32)
    assert made["input_ids"].shape == (1, 32)
    with pytest.raises(ValueError, match="never cut"):
        processor(text="hello", max_length=3)
    with pytest.raises(ValueError, match="needs 'max_length'"):
        processor(text="hello", padding="max_length")
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=["hello", "hello hello there"], padding=False)
    with pytest.raises(ValueError, match="'padding'"):
        processor(text="hello", padding="left")


def test_images_and_texts_must_belong_together() -> None:
    processor = make()
    with pytest.raises(ValueError, match="2 for 1"):
        processor(images=[picture(9, 9), picture(9, 9)], text="a")
    with pytest.raises(UnreachablePointError, match="one image"):
        processor(images=[[picture(9, 9), picture(9, 9)]], text="a")
    with pytest.raises(ValueError, match="'text'"):
        processor(images=picture(9, 9))
    with pytest.raises(TypeError, match="size"):
        processor(images=picture(9, 9), text="a", size=3)


def test_keyword_groups_and_numpy() -> None:
    processor = make()
    made = processor(
        images=[[picture(640, 480)]], text=["a"], images_kwargs={"max_crops": 2}, text_kwargs={"padding": True}
    )
    assert made["pixel_values"].shape[1] <= 3
    assert isinstance(processor(text="a", return_tensors="np")["input_ids"], np.ndarray)


def test_chat_template() -> None:
    processor = make()
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert prompt == " User: What? Assistant: A cat.<|endoftext|> User: Sure? Assistant:"
    assert processor.apply_chat_template(talk[:1]) == " User: What?"
    image = picture(100, 100)
    talk[0]["content"][0]["image"] = image
    made = processor.apply_chat_template(
        talk[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(made["input_ids"], processor(images=image, text="What?")["input_ids"])
    with pytest.raises(Exception, match="roles user and assistant"):
        processor.apply_chat_template([{"role": "system", "content": "x"}])


def test_counts_without_pixels() -> None:
    counts = make()._get_num_multimodal_tokens(image_sizes=[(480, 640), (336, 336)])
    assert counts.num_image_tokens == [704, 288]
    assert counts.num_image_patches == [7, 2]


def test_foreign_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match="<im_col>"):
        make({"<im_start>": 900, "<im_end>": 901, "<im_patch>": 902})
    with pytest.raises(ValueError, match="BOS or an EOS"):
        make(SPECIAL, pad_token="<|pad|>")


def test_saved_and_loaded_through_the_auto_class(tmp_path: Any, processors: dict[str, Any]) -> None:
    from transformers import AutoProcessor

    for family, processor in processors.items():
        folder = tmp_path / family
        processor.save_pretrained(folder)
        again = AutoProcessor.from_pretrained(folder)
        assert type(again) is MolmoProcessor
        assert type(again.image_processor) is MolmoImageProcessor
        image = picture(200, 100)
        want, have = processor(images=image, text="Hi there"), again(images=image, text="Hi there")
        assert all(torch.equal(want[name], have[name]) for name in want)
        assert again.chat_template == processor.chat_template


def test_position_of_the_image_is_that_of_the_reference(
    case_inputs: Callable[[str], dict[str, torch.Tensor]], oracles: dict[str, Any]
) -> None:
    for case in oracles["cases"]:
        inputs = case_inputs(case["family"])
        assert inputs["input_ids"].shape[1] == case["input_len"]
        assert inputs["input_ids"][0, 0] == case["bos"]
        first = case["dims"]["vocab_size"]
        assert inputs["input_ids"][0, 1:3].tolist() == [first, first + 2]
