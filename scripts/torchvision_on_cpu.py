"""Lets the registry's torchvision, which is linked against CUDA torch, be imported beside a CPU build of torch.

Its operators cannot be loaded there, and importing it fails where it describes them. Declaring those few is enough:
what transformers uses of it, the transforms, is plain torch. Run once in the environment that it changes.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

MARK = "# declared for a CPU build of torch"
KINDS = (("threshold", "float"), ("scale", "float"), ("zero_point", "int"))


def main() -> None:
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise SystemExit("torchvision is not installed here")
    file = Path(found.origin).parent / "_meta_registrations.py"
    text = file.read_text(encoding="utf-8")
    if MARK in text:
        print(f"{file} is done already")
        return
    described = re.findall(
        r'^@torch\.library\.register_fake\("torchvision::(\w+)"\)\ndef \w+\(([^)]*)\)', text, re.MULTILINE
    )
    lines = [MARK, "if not torchvision.extension._has_ops():"]
    for name, arguments in described:
        plain = [argument.split(":")[0].split("=")[0].strip() for argument in arguments.split(",")]
        typed = ", ".join(f"{kind_of(argument)} {argument}" for argument in plain if argument)
        lines.append(f'    torch.library.define("torchvision::{name}", "({typed}) -> Tensor")')
    at = text.index('@torch.library.register_fake("torchvision::')
    file.write_text(text[:at] + "\n".join(lines) + "\n\n\n" + text[at:], encoding="utf-8")
    print(f"{len(described)} operators declared in {file}")


def kind_of(argument: str) -> str:
    return next((kind for part, kind in KINDS if part in argument), "Tensor")


if __name__ == "__main__":
    main()
