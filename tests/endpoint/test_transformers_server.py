"""A real server: ``transformers serve``, with a tiny random LLaVA that ``experiment=export`` writes.

It sends its role chunk before the prefill, refuses unknown fields, and answers ``/v1/models`` with 500 offline.
Structure and counts only; no time is bounded from above.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.endpoint.serving import image, meet, send
from tests.models.test_export import FLOAT, spec_of
from vlmbench.engines.endpoint.bodies import chat_body
from vlmbench.engines.endpoint.dialects import dialect
from vlmbench.engines.endpoint.exchange import Order
from vlmbench.engines.endpoint.settings import Endpoint, Load
from vlmbench.models.export import export
from vlmbench.request import Output, Request, Sample

_MISSING = [name for name in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (extra 'servers')"),
]
_VISION_TOKENS = 16  # (56 / 14) squared


def tiny_llava() -> dict[str, object]:
    """The configuration and processor of LLaVA-1.5, narrow and with small images."""
    spec = spec_of("llava_1_5_7b")
    config, processor = dict(spec.config), dict(spec.processor)
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config["vision_config"] = {**config["vision_config"], **narrow, "image_size": 56}
    config["text_config"] = {**config["text_config"], **narrow, "num_key_value_heads": 2}
    processor["image_processor"] = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    return {"name": "tiny_llava", "config": config, "processor": processor}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of the server, and the model's name there: its folder."""
    place = tmp_path_factory.mktemp("serve")
    folder = export(spec_of("llava_1_5_7b", **tiny_llava()), place / "model", runtime=FLOAT, weights=True, seed=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(place / "hub")}
    log = place / "log"
    with (
        log.open("wb") as lines,
        subprocess.Popen([*command, "--device", "cpu"], stdout=lines, stderr=lines, env=offline) as process,
    ):
        try:
            until = time.monotonic() + 240
            while process.poll() is None and time.monotonic() < until:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail(f"transformers serve did not start: {log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _order(number: int, model: str, *, images: int = 1) -> Order:
    sample = Sample(sample_id=str(number), question="what is this", images=tuple(image(number) for _ in range(images)))
    request = Request(sample=sample, output=Output(max_new_tokens=6, forced=False))
    body = chat_body(request, model=model, kind=dialect("transformers"), salt=str(number), extra={})
    return Order(sample_id=str(number), repeat=0, body=body, asked_tokens=6, forced=False)


def test_it_is_met_asked_and_measured(served: tuple[str, str]) -> None:
    url, model = served
    endpoint = Endpoint(base_url=url, model=model, dialect="transformers", proxy="none", silence_s=200)

    server = meet(endpoint, _order(0, model))  # loads the model
    assert server.facts["dialect"] == "transformers"
    with_image = send(endpoint, Load(), [_order(i, model) for i in range(1, 5)])
    text = send(endpoint, Load(), [_order(9, model, images=0)])
    for result in (*with_image.measured, *text.measured):
        values = result.values
        assert result.ok, result.reason
        assert values["chunks_role"] >= 1, "the role is a chunk of its own, and no token"
        # the role and the first token may come with one read, which has one stamp
        assert values["T_first_event"] <= values["TTFT"] <= values["T_request"] <= values["T_end"]
        assert 1 <= values["num_output_tokens"] <= 6
        assert not any(name.startswith("server_") for name in values), "it says nothing of its own times"
    more = with_image.measured[0].values["num_input_tokens"] - text.measured[0].values["num_input_tokens"]
    assert more >= _VISION_TOKENS
