"""A tiny vision-language model with random weights as llama.cpp reads it: a Llama and a CLIP with a two-layer projector.

Written with the ``gguf`` package alone, in milliseconds. The tokenizer has one piece a byte and a few hundred words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS = 64, 128, 2, 4
VISION_WIDTH, IMAGE, PATCH = 64, 56, 14
FIRST_WORD = 259  # after control tokens and bytes
VISION_TOKENS = (IMAGE // PATCH) ** 2
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def _random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.05, shape).astype(np.float32)


def _pieces() -> tuple[list[bytes], list[float], list[int]]:
    """Pieces, scores and types of a SentencePiece vocabulary: control tokens, bytes, then pairs of letters."""
    from gguf import TokenType

    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["\u2581", *letters, *("\u2581" + a for a in letters), *(a + b for a in letters for b in letters[:8])]
    pieces += [w.encode() for w in words]
    kinds += [TokenType.NORMAL] * len(words)
    scores = [0.0] * FIRST_WORD + [-float(i + 1) for i in range(len(words))]
    return pieces, scores, [int(k) for k in kinds]


def write_language_model(path: Path, *, seed: int = 0) -> None:
    """The language model."""
    from gguf import GGUFWriter

    rng = np.random.default_rng(seed)
    pieces, scores, kinds = _pieces()
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(_TEMPLATE)
    writer.add_tensor("token_embd.weight", _random(rng, len(pieces), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    head = _random(rng, len(pieces), WIDTH)
    head[:FIRST_WORD] = 0  # never the likeliest: answers are made of whole words
    writer.add_tensor("output.weight", head)
    for i in range(LAYERS):
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)),
            ("attn_k", (WIDTH, WIDTH)),
            ("attn_v", (WIDTH, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)),
            ("ffn_gate", (HIDDEN, WIDTH)),
            ("ffn_up", (HIDDEN, WIDTH)),
            ("ffn_down", (WIDTH, HIDDEN)),
        ):
            writer.add_tensor(f"blk.{i}.{name}.weight", _random(rng, *shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    _finish(writer)


def write_vision_model(path: Path, *, seed: int = 1, tiles: int = 1) -> None:
    """The vision encoder with its projector (``mmproj``).

    Args:
        path: to write to.
        seed: of the weights.
        tiles: most tiles along a side; above 1 a larger image is cut into tiles as LLaVA-1.6 does, and makes more tokens.
    """
    from gguf import GGUFWriter

    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_name("tiny")
    writer.add_file_type(0)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for name, value in (
        ("image_size", IMAGE),
        ("patch_size", PATCH),
        ("embedding_length", VISION_WIDTH),
        ("feed_forward_length", HIDDEN),
        ("projection_dim", WIDTH),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
    ):
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48, 0.46, 0.41])
    writer.add_array("clip.vision.image_std", [0.27, 0.26, 0.28])
    w = VISION_WIDTH
    if tiles > 1:
        sizes = [(IMAGE * side, IMAGE * side) for side in range(1, tiles + 1)]
        writer.add_array("clip.vision.image_grid_pinpoints", [pixels for size in sizes for pixels in size])
        writer.add_string("clip.vision.mm_patch_merge_type", "spatial_unpad")
        writer.add_tensor("model.image_newline", np.zeros(WIDTH, np.float32))
    writer.add_tensor("v.class_embd", _random(rng, w))
    writer.add_tensor("v.patch_embd.weight", _random(rng, w, 3, PATCH, PATCH))
    writer.add_tensor("v.position_embd.weight", _random(rng, VISION_TOKENS + 1, w))
    for name in ("v.pre_ln", "v.post_ln"):
        writer.add_tensor(f"{name}.weight", np.ones(w, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(w, np.float32))
    for i in range(LAYERS):
        for name, shape in (
            ("attn_q", (w, w)),
            ("attn_k", (w, w)),
            ("attn_v", (w, w)),
            ("attn_out", (w, w)),
            ("ffn_up", (HIDDEN, w)),
            ("ffn_down", (w, HIDDEN)),
        ):
            writer.add_tensor(f"v.blk.{i}.{name}.weight", _random(rng, *shape))
            writer.add_tensor(f"v.blk.{i}.{name}.bias", np.zeros(shape[0], np.float32))
        for name in ("ln1", "ln2"):
            writer.add_tensor(f"v.blk.{i}.{name}.weight", np.ones(w, np.float32))
            writer.add_tensor(f"v.blk.{i}.{name}.bias", np.zeros(w, np.float32))
    for number in (0, 2):
        writer.add_tensor(f"mm.{number}.weight", _random(rng, WIDTH, w))
        writer.add_tensor(f"mm.{number}.bias", np.zeros(WIDTH, np.float32))
    _finish(writer)


def _finish(writer: object) -> None:
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
