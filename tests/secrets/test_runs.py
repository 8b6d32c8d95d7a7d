"""Real commands with secrets planted wherever a user can write; no byte that they leave holds one."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from tests import forks
from tests.secrets.forms import BESIDE, LOOKS
from vlmbench.testing.replay import ReplayServer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUICK = (
    "experiment=smoke", "output.tokens=2", "measurement.warmup.max_runs=1", "measurement.image_size=[56,56]",
    "runtime.threads=1", "device_peaks=none", "progress=false",
)  # fmt: skip
NAMED = {f"PLANTED_{i}_TOKEN": f"plain-value-of-variable-{i}" for i in range(3)}
ENVIRONMENT = {**NAMED, "ORDINARY_NAME": "ordinary-name-of-a-variable", "DB_PASSWORD": 'qu"ote d\\pass/w+ord='}
SECRETS = {**LOOKS, **{kind: secret for kind, (_, secret) in BESIDE.items()}, **ENVIRONMENT}


def texts() -> list[str]:
    """Each form as a user would write it."""
    return [*(f"see {secret}" for secret in LOOKS.values()), *(text.format(secret) for text, secret in BESIDE.values())]


def needles(secret: str) -> set[str]:
    """How it may stand in a file: as it is, and as JSON, Python and YAML write it."""
    lines = [line for line in secret.splitlines() if "-----" not in line and len(line) > 20] or [secret]
    return {form for line in lines for form in (line, json.dumps(line)[1:-1], repr(line)[1:-1])}


def contents(file: Path) -> bytes:
    data = file.read_bytes()
    if file.suffix == ".gz":
        return gzip.decompress(data)
    if file.suffix == ".pdf":  # metadata is plain, what is drawn is compressed
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
        return b"\n".join([data, *(_inflated(stream) for stream in streams)])
    if file.suffix == ".png":
        with Image.open(file) as image:
            return data + repr(image.info).encode()
    if file.suffix == ".parquet":
        return str(pyarrow.parquet.read_table(file).to_pylist()).encode()
    return data


def _inflated(stream: bytes) -> bytes:
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(stream)
    return b""


def left(folder: Path, said: Iterable[str], secrets: Mapping[str, str], *, but: Iterable[Path] = ()) -> list[str]:
    """``kind in file`` of what is found in the files of a folder and in what was printed."""
    inputs = {path.resolve() for path in but}
    files = [f for f in folder.rglob("*") if f.is_file() and not inputs & {f.resolve(), *f.resolve().parents}]
    outputs = [(str(f.relative_to(folder)), contents(f)) for f in files]
    outputs += [(f"output {number}", text.encode()) for number, text in enumerate(said)]
    assert len(outputs) > 3
    return [
        f"{kind} in {name}"
        for kind, secret in secrets.items()
        for name, data in outputs
        if any(needle.encode() in data for needle in needles(secret))
    ]


def run(
    folder: Path, *arguments: str, status: int | None = 0, from_nothing: bool = False, **environment: str
) -> list[str]:
    """Run the command; returns what it printed.

    Args:
        folder: where it runs.
        arguments: its words.
        status: how it must end; None: anyhow.
        from_nothing: not in a fork: its imports have the secrets in their environment, too.
        environment: more variables.
    """
    environment = {**ENVIRONMENT, **environment}
    if from_nothing:
        done = subprocess.run(
            [sys.executable, "-m", "vlmbench", *arguments], cwd=folder, capture_output=True, text=True, check=False,
            env=forks.clean_environment(**environment),
        )  # fmt: skip
    else:
        done = forks.run(*arguments, cwd=folder, **environment)
    if status is not None:
        assert done.returncode == status, done.stderr[-3000:]
    return [done.stdout, done.stderr]


def images(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (56, 56), (index * 90, 80, 120)).save(folder / f"{index}.png")
    return folder


def planted_model(folder: Path) -> None:
    """``model=planted`` of a folder of configurations: the tiny model, its YAML full of secrets."""
    tiny = yaml.safe_load((ROOT / "conf" / "model" / "tiny.yaml").read_text())
    tiny["config"]["notes"] = texts()
    tiny["config"]["from_environment"] = ["${oc.env:PLANTED_0_TOKEN}", "Bearer ${oc.env:ORDINARY_NAME} x"]
    tiny["hub_id"] = "https://alice:tr0ub4dor-and-3@host.org/x"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "planted.yaml").write_text(yaml.safe_dump(tiny))


def test_a_run_whose_configuration_and_files_are_full_of_them(tmp_path: Path) -> None:
    """In YAML and overrides, in paths, in the reasons of rows, in names of images, in variables, in the log."""
    root = images(tmp_path / "x?token=tr0ub4dor-and-3&y")
    planted_model(tmp_path / "own")
    named = ["0.png", "1.png", *(t.lstrip("/") for t in texts() if "\n" not in t and "/.." not in t)]
    asked = root / "asked.jsonl"
    asked.write_text("".join(json.dumps({"image": name, "question": "What?"}) + "\n" for name in named))
    command = [
        *QUICK, "--config-dir", str(tmp_path / "own"), "model=planted", "dataset=image_folder", f"dataset.root='{root}'",
        "dataset.questions=asked.jsonl", "dataset.num_samples=null", "measurement.max_errors_in_a_row=1000",
        f"+hydra.job.env_set={{HF_TOKEN: '{SECRETS['password']}'}}", "output_dir=out",
        f"dataset.prompt='{{question}} api_key={SECRETS['key header']}'",
    ]  # fmt: skip
    said = run(tmp_path, *command, status=1, from_nothing=True)
    rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert sum(row["status"] == "error" for row in rows) >= len(named) - 2
    assert any(row["status"] == "ok" for row in rows)
    assert len({row["sample_id"] for row in rows}) == len(named)
    said += run(tmp_path, *command, status=1)  # continues: a name without its secret is still that of its row
    again = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert sum(row["status"] == "ok" for row in again) == sum(row["status"] == "ok" for row in rows)
    said += run(tmp_path, "experiment=status", "runs=out", status=None)
    said += run(tmp_path, "experiment=collect", "runs=out", status=None)
    assert left(tmp_path, said, SECRETS, but=[tmp_path / "own", root]) == []
    config = yaml.safe_load((tmp_path / "out" / ".hydra" / "config.yaml").read_text())["model"]["config"]
    assert config["from_environment"] == ["${oc.env:PLANTED_0_TOKEN}", "Bearer ${oc.env:ORDINARY_NAME} x"]


@pytest.mark.skipif("VLMBENCH_FUZZ" not in os.environ, reason="a whole study takes minutes: make fuzz runs it")
def test_a_study_and_all_that_is_made_of_it(tmp_path: Path) -> None:
    """Parts, report and page, figures with their metadata, tables, exports, trackers' stores, a baseline, a comparison."""
    planted_model(tmp_path / "own")
    command = [
        *QUICK, "experiment=all", "--config-dir", str(tmp_path / "own"), "model=planted",
        "measurement.stopping.max_samples=3",
        "measurement.stopping.min_samples=3", "measurement.stopping.min_time_s=0", "dataset.num_samples=8", "tracker=mlflow",
        f"dataset.prompt='{{question}} api_key={SECRETS['key header']}'", "name='see ${oc.env:PLANTED_0_TOKEN}'",
        "figures.style=paper", "probe=[timeline]", "output_dir=out",
    ]  # fmt: skip
    said = run(tmp_path, *command[1:])
    said += run(
        tmp_path,
        *QUICK,
        "--config-dir",
        "own",
        "model=planted",
        "report=phase1",
        "tracker=tensorboard",
        "output_dir=one",
    )
    made = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {".pdf", ".png", ".html", ".json", ".jsonl", ".csv", ".tex"} <= made
    said += run(tmp_path, "experiment=report", "runs=out/phase1", "output_dir=again")
    said += run(tmp_path, "experiment=compare", "candidate=out/phase1", "save_baseline=kept")
    said += run(tmp_path, "experiment=compare", "baseline=kept", "candidate=one", "output_dir=compared", status=None)
    said += run(tmp_path, "experiment=collect", "runs=out", status=None)
    stores = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "mlflow.db" in stores
    assert "records.jsonl.gz" in stores
    assert any(name.startswith("events.out.tfevents") for name in stores)
    assert left(tmp_path, said, SECRETS, but=[tmp_path / "own"]) == []


def test_a_renewed_token_continues_a_run_and_another_ordinary_value_does_not(tmp_path: Path) -> None:
    images(tmp_path / "pictures")
    command = [
        *QUICK, "report=none", "dataset=image_folder", "dataset.root=pictures", "dataset.num_samples=1", "output_dir=out",
        "model.hub_id=${oc.env:PLANTED_0_TOKEN}", "model.name=${oc.env:ORDINARY_NAME}",
    ]  # fmt: skip
    run(tmp_path, *command)
    assert "continuing" in run(tmp_path, *command, PLANTED_0_TOKEN="another-value-of-it")[1]
    assert "another configuration" in run(tmp_path, *command, ORDINARY_NAME="another-name-of-it", status=2)[1]
    unset = run(tmp_path, *command[:-2], "model.hub_id=${oc.env:NOT_SET_ANYWHERE}", status=2)[1]
    assert "Traceback" not in unset
    assert "NOT_SET_ANYWHERE" in unset


def test_a_grid_keeps_what_is_written_and_its_jobs_look_it_up(tmp_path: Path) -> None:
    root = images(tmp_path / "pictures")
    said = run(
        tmp_path, "-m", *QUICK, "seed=0,1", "hydra/launcher=local", "dataset=image_folder", "dataset.root=pictures",
        "dataset.num_samples=1", "model.hub_id=${oc.env:PLANTED_1_TOKEN}", "model.name=${oc.env:ORDINARY_NAME}",
        "dataset.question='password is ${oc.env:DB_PASSWORD}'", "output_dir=grid",
    )  # fmt: skip
    grid = tmp_path / "grid"
    assert "${oc.env:PLANTED_1_TOKEN}" in next(grid.glob(".vlmbench/*/tasks/0.json")).read_text()
    assert json.loads(next(grid.glob("0_*/outcome.json")).read_text())["state"] == "done"
    said += run(tmp_path, "experiment=status", "runs=grid")
    said += run(tmp_path, "experiment=collect", "runs=grid")
    assert left(tmp_path, said, ENVIRONMENT, but=[root]) == []


@pytest.mark.parametrize("launcher", ["basic", "local", "slurm", "submitit_local"])
def test_a_secret_in_plain_words_is_refused_in_a_grid(
    vlmbench_here: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    launcher: str,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for planted in (
        "model.hub_id=" + LOOKS["GitHub"], "+hydra.job.env_set.HF_TOKEN=" + SECRETS["password"],
        *(["hydra.launcher.setup=['export HF_TOKEN=" + SECRETS["password"] + "']"] if launcher == "slurm" else []),
        *(["hydra.launcher.comment='${oc.env:PLANTED_0_TOKEN}'"] if launcher == "slurm" else []),
    ):  # fmt: skip
        done = vlmbench_here("-m", *QUICK, "seed=0,1", f"hydra/launcher={launcher}", planted, "output_dir=grid")
        said = [done.stdout, done.stderr]
        assert done.returncode == 2, done.stderr
        assert "a secret stands in" in said[1]
        assert "${oc.env:NAME}" in said[1]
        assert "Traceback" not in said[1]
        assert not [f for f in tmp_path.rglob("*") if f.is_file()]
        assert not [
            kind for kind, secret in SECRETS.items() if any(n in text for n in needles(secret) for text in said)
        ]
    allowed = "hydra.launcher.setup=['export HF_TOKEN=$PLANTED_0_TOKEN']"
    if launcher == "slurm":
        assert (
            "a secret stands in"
            not in run(tmp_path, "-m", *QUICK, "seed=0,1", f"hydra/launcher={launcher}", allowed, status=None)[1]
        )


def test_what_a_server_says_is_gone_through(tmp_path: Path) -> None:
    """Error answers that repeat headers, keys and addresses; the key in its variable; the address of the server."""
    key = "plain-key-of-the-server-77"
    said: list[str] = []
    with ReplayServer(api_key=key, fail_from=3, fail_text=" ".join([*texts(), key])) as server:
        common = [
            *QUICK[:2], "runtime=endpoint", f"runtime.base_url={server.base_url}", "runtime.model=steady",
            "runtime.api_key_env=SERVER_ACCESS", "report=phase1", "dataset.num_samples=4", "progress=false",
            f"+runtime.extra_body.user={LOOKS['OpenAI']}", "output_dir=out",
        ]  # fmt: skip
        said += run(tmp_path, *common, status=1, SERVER_ACCESS=key)
        said += run(tmp_path, *common[:-1], "output_dir=no", status=2, SERVER_ACCESS="plain-key-that-is-wrong")
        rows = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
        assert any(row["status"] == "error" for row in rows)
        for address in ("http://alice:tr0ub4dor-and-3@localhost/v1", f"http://localhost/v1?api_key={LOOKS['OpenAI']}"):
            said += run(
                tmp_path,
                *common[:3],
                f"runtime.base_url='{address}'",
                *common[4:-1],
                "output_dir=no",
                status=2,
                SERVER_ACCESS=key,
            )
    secrets = {**SECRETS, "key": key, "wrong key": "plain-key-that-is-wrong"}
    assert left(tmp_path, said, secrets) == []


@pytest.mark.parametrize(
    ("breaks", "status"),
    [("    @property\n    def name(self):\n", 1), ("    def open(self):\n", 2)],
    ids=["name", "open"],
)
def test_an_error_of_another_package_is_gone_through(tmp_path: Path, breaks: str, status: int) -> None:
    """Its data set ends with a traceback, or a refusal, that is full of them: output, outcome and log."""
    package = tmp_path / "site" / "planted_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import logging, warnings\nfrom dataclasses import dataclass\nfrom pathlib import Path\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Planted:\n    file: str\n    num_samples: int = 1\n"
        f"{breaks}        text = Path(self.file).read_text()\n        print(text)\n"
        "        warnings.warn(text)\n"
        "        logging.getLogger('x').warning('logged %s', text, extra={'more': text})\n"
        "        try:\n            raise KeyError(text)\n        except KeyError:\n"
        "            logging.getLogger('x').exception('and %r', text)\n            raise RuntimeError(text)\n"
    )
    info = tmp_path / "site" / "planted_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vlmbench.datasets]\nplanted = planted_package:Planted\n")
    texts_file = tmp_path / "texts"
    texts_file.write_text("\n".join([*texts(), *ENVIRONMENT.values()]))
    said = run(
        tmp_path, *QUICK, "dataset._target_=planted_package.Planted", *(f"~dataset.{k}" for k in _keys_of_dataset()),
        "+dataset.file=texts", "output_dir=out", status=status, from_nothing=True,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path / "site")]),
    )  # fmt: skip
    assert "RuntimeError" in said[1]
    assert "and " in (tmp_path / "out" / "vlmbench.log").read_text()
    secrets = {**SECRETS, "ordinary": "no variable of a configuration, so it stays"}
    secrets.pop("ORDINARY_NAME")  # neither its name nor its look makes it a secret, and no configuration took it
    assert left(tmp_path, said, secrets, but=[texts_file, package]) == []


def _keys_of_dataset() -> list[str]:
    return [
        key
        for key in yaml.safe_load((ROOT / "conf" / "dataset" / "synthetic_vqa.yaml").read_text())
        if key != "_target_"
    ]


def test_no_home_and_no_user_in_what_is_published(tmp_path: Path) -> None:
    home = tmp_path / "people" / "zacharias"
    images(home / "pictures", 1)
    (home / "pictures" / "q.jsonl").write_text('{"image": "0.png"}\n{"image": "none.png"}\n')
    for number, (place, root) in enumerate([("people", str(home)), ("here", "~")]):
        (tmp_path / place).mkdir(exist_ok=True)
        run(
            tmp_path / place, *QUICK, "dataset=image_folder", f"dataset.root='{root}/pictures'",
            "dataset.num_samples=null", "dataset.questions=q.jsonl", f"output_dir={tmp_path}/out{number}", status=1,
            from_nothing=True, HOME=str(home), USER="zacharias", LOGNAME="zacharias",
        )  # fmt: skip
        published = [f for f in (tmp_path / f"out{number}").glob("*") if f.suffix in (".json", ".jsonl", ".html")]
        assert len(published) >= 6
        assert [f.name for f in published if "zacharias" in f.read_text()] == []
