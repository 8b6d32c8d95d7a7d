"""MolmoE's decode beside the same language model in plain transformers (``OlmoeForCausalLM``), random weights.

    python benchmarks/molmoe_decode.py                       # real dimensions: a GPU with 40 GB
    python benchmarks/molmoe_decode.py --layers 2 --rounds 5 # a laptop

Three models decode the same number of tokens after inputs of the same length: MolmoE with grouped experts after an
image and a question, plain OLMoE as transformers runs it by default after random text, and MolmoE with experts one
after the other in Python. Only decode is timed: first token to last token of one ``generate()`` call, by marks that
do not synchronise. On a GPU, ``generate`` itself runs grouped experts as ``batched_mm`` in decode steps, of all models
alike: the column ``experts`` names what ran. The models take turns, and ratios are those of runs in the same round
(the machine drifts); the interval of their median is from order statistics.
"""

from __future__ import annotations

import argparse
import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

NAME = "molmoe_1b"
PLAIN, GROUPED, LOOP = "OLMoE, plain transformers", "MolmoE, grouped experts", "MolmoE, experts in a loop"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model with inputs of the common length."""

    name: str
    module: Any
    inputs: dict[str, Any]

    @property
    def experts(self) -> str:
        """The implementation that its experts run with in decode steps."""
        from vlmbench.models.building import experts_facts

        return experts_facts(self.module)["experts_implementation_decode"]


def decode_ms(candidate: Candidate, clock: Any, tokens: int) -> float:
    """First token ready to last token ready, of one ``generate()`` call, ms."""
    import torch
    from transformers import StoppingCriteriaList

    set_mark = clock.marker("token")

    def mark(ids: Any, *_: Any, **__: Any) -> Any:
        set_mark()
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    device = candidate.module.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock.begin()
    with torch.inference_mode():
        candidate.module.generate(
            **candidate.inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            disable_compile=True,
            stopping_criteria=StoppingCriteriaList([mark]),
        )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    marks = clock.read()
    if len(marks) != tokens:
        raise RuntimeError(f"{candidate.name} gave {len(marks)} tokens where {tokens} were asked for")
    return float(marks[-1] - marks[0])


def molmoe(layers: int | None) -> Any:
    """MolmoE with random weights on this machine's device, through the project's own loader."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from vlmbench.machine.installation import conf_dir
    from vlmbench.models.loading import load

    node: Any = OmegaConf.load(conf_dir() / "model" / f"{NAME}.yaml")
    if layers is not None:
        node.config.text_config.num_hidden_layers = layers
        node.config.vision_config.num_hidden_layers = 10  # the connector reads the second and the ninth to last
    return load(instantiate(node, _convert_="all"))


def candidates(layers: int | None) -> list[Candidate]:
    """The three, with inputs of one length."""
    import torch
    from transformers import OlmoeForCausalLM

    from vlmbench.data.synthetic import SyntheticVQA
    from vlmbench.request import Output, Request

    grouped, loop = molmoe(layers), molmoe(layers)
    grouped.module.set_experts_implementation("grouped_mm")
    loop.module.set_experts_implementation("eager")
    sample = SyntheticVQA(num_samples=1).open()[0]
    request = Request(sample=sample, output=Output(max_new_tokens=1, forced=True), image_size=(640, 480))
    inputs = dict(grouped.transfer(grouped.prepare(request)).inputs)
    length = inputs["input_ids"].shape[1]
    torch.manual_seed(0)
    olmoe: Any = OlmoeForCausalLM
    with torch.device(grouped.device):
        plain = olmoe._from_config(grouped.module.config.text_config, dtype=grouped.dtype).eval()
    plain.generation_config = deepcopy(grouped.module.generation_config)  # an end token costs a check a token
    text = torch.randint(100, 50_000, (1, length), device=grouped.device)
    return [
        Candidate(name=PLAIN, module=plain, inputs={"input_ids": text, "attention_mask": torch.ones_like(text)}),
        Candidate(name=GROUPED, module=grouped.module, inputs=inputs),
        Candidate(name=LOOP, module=loop.module, inputs=inputs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=33, help="of each run (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="of the language model, instead of the real 16")
    options = parser.parse_args()
    import torch
    import transformers

    from vlmbench.analysis.quantiles import median
    from vlmbench.machine.clock import clock_for

    three = candidates(options.layers)
    device = three[0].module.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    length = three[1].inputs["input_ids"].shape[1]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {name}, {three[0].module.dtype}")
    print(f"{length} input tokens, {options.tokens - 1} tokens decoded, {options.rounds} rounds, random weights")
    clock = clock_for([device])
    times: dict[str, list[float]] = {one.name: [] for one in three}
    order = random.Random(0)
    for turn in range(options.rounds + 2):
        for one in order.sample(three, len(three)):
            elapsed = decode_ms(one, clock, options.tokens)
            if turn >= 2:  # the first two rounds warm up
                times[one.name].append(elapsed / (options.tokens - 1))
    print(f"{'decode':28}{'experts':>14}{'ms a token':>12}{'95 % interval':>20}{'to plain':>10}{'95 % interval':>20}")
    for one in three:
        own = median(times[one.name])
        ratio = median([mine / plain for mine, plain in zip(times[one.name], times[PLAIN], strict=True)])
        print(f"{one.name:28}{one.experts:>14}{_cells(own)}{_cells(ratio) if one.name != PLAIN else ''}")


def _cells(estimate: Any) -> str:
    low, high = (f"{end:.4g}" if end is not None else "n too small" for end in (estimate.low, estimate.high))
    return f"{estimate.value:>12.4g}{f'{low} to {high}':>20}"


if __name__ == "__main__":
    main()
