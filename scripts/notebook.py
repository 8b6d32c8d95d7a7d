"""Makes ``docs/notebook.ipynb``: the Python API on the default model, executed, with what it printed and drew."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CELLS: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        "# vlmbench from Python\n\nThe default tiny model with random weights, on a CPU: the times are this machine's, "
        "not a finding. `scripts/notebook.py` made this notebook.",
    ),
    (
        "code",
        "import vlmbench\nfrom PIL import Image\n\n"
        'model, processor = vlmbench.load("tiny", device="cpu", threads=1)\n'
        'image = Image.new("RGB", (224, 224), "grey")',
    ),
    ("markdown", "## Measure\n\nOne request is repeated until the interval of its median is narrow enough."),
    (
        "code",
        'run = vlmbench.measure(model, processor, [(image, "What is this?")], output_tokens=8,\n'
        '                       stopping={"max_samples": 20})\nrun',
    ),
    ("markdown", "`frame` holds the rows that are latencies; `rows` all of them."),
    ("code", 'run.frame[["T_total", "T_vision_encoder", "T_LLM_prefill", "T_LLM_decode"]].median(), len(run.rows)'),
    ("code", 'vlmbench.summary(run.frame)["distribution"]["T_total"]["workload"]["p50"]'),
    ("markdown", "## Watch any `generate()`"),
    (
        "code",
        'inputs = processor(text=["What is this?"], return_tensors="pt")\n'
        "with vlmbench.watch(model) as runs:\n    model.generate(**inputs, max_new_tokens=8, min_new_tokens=8)\n"
        "runs[0].stages",
    ),
    ("markdown", "## Which module is which stage"),
    ("code", "vlmbench.anatomy(model)"),
)


def main(path: Path) -> None:
    """Execute the cells and write the notebook."""
    makers = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [makers[kind](source) for kind, source in CELLS]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in cells:
        cell.get("metadata", {}).pop("execution", None)  # when it ran is nobody's business
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output["text"] = ""
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb")
