"""scripts/results.sh: parts of a group run at the same time and measure in turns."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from vlmbench.machine.turns import member_name

SCRIPT = Path(__file__).parent.parent / "scripts" / "results.sh"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="a source distribution has no scripts")


def _begin(
    folder: Path,
    python: Path,
    *words: str,
    start_new_session: bool = False,
    cwd: Path | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    return _call(str(folder), *words, python=python, start_new_session=start_new_session, cwd=cwd, **environment)


def _as_in_a_terminal() -> None:
    """Tests that run in the background hand on ignored signals, which no shell can trap."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _call(
    *words: str, python: Path, start_new_session: bool = False, cwd: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    python.chmod(0o755)
    settings = {**os.environ, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": "", "SMALL": "", **environment}
    return subprocess.Popen(
        [SCRIPT, *words], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        start_new_session=start_new_session, preexec_fn=_as_in_a_terminal,  # noqa: PLW1509
    )  # fmt: skip


def _ends(folder: Path) -> list[tuple[str, str]]:
    """(part, exit status) in the order that they ended in."""
    lines = (folder / "parts.tsv").read_text().splitlines()
    return [(part, status) for part, status, *_ in (line.split("\t") for line in lines)]


def _turns_of(folder: Path, part: str) -> dict[str, str]:
    """What the last command of a part said of turns."""
    words = (folder / part / "words").read_text().splitlines()
    return dict(word.removeprefix("measurement.turns.").split("=", 1) for word in words if ".turns." in word)


def test_a_group_begins_together_and_one_of_it_runs_as_any_part(tmp_path: Path) -> None:
    """One that fails ends none of the others; what is done before is no member."""
    folder, python = tmp_path / "runs", tmp_path / "python"
    python.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
for word; do [[ $word == output_dir=* ]] && out=${{word#*=}}; done
mkdir -p "$out" && printf '%s\\n' "$@" >"$out/words" && basename "$(readlink /proc/$$/fd/7)" >"$out/place"
[[ $* != *members=3* ]] || until ls {folder}/llava_{{vllm,cudagraph,compiled}}_phase1/words >/dev/null 2>&1; do
    sleep 0.05; done
[[ $out != *vllm_phase1 ]] || exit 3
""")
    group = ("llava_vllm_phase1", "llava_cudagraph_phase1", "llava_compiled_phase1")
    listed = _begin(folder, python, "--list").communicate()[0].splitlines()
    seconds = next(int(line.split("\t")[2]) for line in listed if line.startswith(f"{group[0]}\t"))
    said = _begin(folder, python, *group, "llava_eager").communicate()[0]
    assert f"=== group 0a in turns, at most {3 * seconds} s: {', '.join(group)}\n" in said
    assert dict(_ends(folder)) == {group[0]: "3", **dict.fromkeys((*group[1:], "llava_eager"), "0")}
    shared = _turns_of(folder, group[0])
    assert shared == _turns_of(folder, group[1]) == _turns_of(folder, group[2])
    assert (shared["members"], shared["runs"]) == ("3", "8")
    directory = Path(shared["directory"])
    assert directory == folder / "turns" / "0a"
    held = {(folder / part / "place").read_text().strip() for part in group}
    assert (
        {path.name for path in directory.iterdir()} == held == {f"{member_name(folder / part)}.place" for part in group}
    )
    assert _turns_of(folder, "llava_eager") == {}, "alone of its group"

    (folder / "parts.tsv").write_text("llava_cudagraph_phase1\t0\t9\n")
    said = _begin(
        folder, python, *group, "llava_compiled", "llava_eager", SECONDS_LEFT=str(2 * seconds + 20)
    ).communicate()[0]
    begun = f"group 0a in turns, at most {2 * seconds} s: llava_vllm_phase1, llava_compiled_phase1"
    assert f"=== llava_cudagraph_phase1: done before\n=== {begun}\n" in said
    assert _turns_of(folder, group[0])["members"] == "2"
    assert "=== llava_compiled, llava_eager: does not fit into the " in said
    assert "(it may take 1020 s)" in said


def test_variables_before_the_words_of_a_part_are_of_its_environment_alone(tmp_path: Path) -> None:
    folder, python = tmp_path / "runs", tmp_path / "python"
    python.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
for word; do [[ $word == output_dir=* ]] && out=${{word#*=}}; done
mkdir -p "$out" && echo "$1 $2 $3 ${{VLLM_USE_V2_MODEL_RUNNER-none}}" >"$out/words"
""")
    _begin(folder, python, "llava_vllm_stats", "llava_vllm_open").communicate()
    said = [(folder / part / "words").read_text() for part in ("llava_vllm_stats", "llava_vllm_open")]
    assert said == ["-m vlmbench experiment=phase1 0\n", "-m vlmbench experiment=phase1 none\n"]


@pytest.mark.parametrize(
    "parts", [("llava_energy", "qwen_long_tail"), ("qwen3_cudagraph", "qwen3_eager", "llava_grid")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_what_was_begun_and_begins_no_more(
    tmp_path: Path, parts: tuple[str, ...], number: signal.Signals
) -> None:
    """A terminal signals its group: the script, and not what ``timeout`` starts."""
    folder, python = tmp_path / "runs", tmp_path / "python"
    python.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
trap 'kill $!; exit 130' TERM
for word; do [[ $word == output_dir=* ]] && touch "{tmp_path}/begun_${{word##*/}}"; done
sleep 600 & wait
""")
    running = _begin(folder, python, *parts, start_new_session=True)
    begun = {f"begun_{part}" for part in parts[:-1]}
    while {path.name for path in tmp_path.glob("begun_*")} != begun:
        assert running.poll() is None
        time.sleep(0.02)
    os.killpg(running.pid, number)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 143, said
    assert sorted(_ends(folder)) == [(part, "143") for part in sorted(parts[:-1])]
    with (folder / "alone.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\nexit 0\n')
    again = _begin(folder, python, *parts)
    again.communicate()
    assert (again.returncode, dict(_ends(folder))) == (0, dict.fromkeys(parts, "0")), "the same call goes on"


@pytest.mark.parametrize(
    ("parts", "shells"),
    [
        (("llava_energy",), False),
        (("qwen3_cudagraph", "qwen3_eager"), False),
        (("qwen3_cudagraph", "qwen3_eager"), True),
    ],
)
def test_nothing_is_measured_beside_what_a_killed_call_left_running(
    tmp_path: Path, parts: tuple[str, ...], shells: bool
) -> None:
    """``kill -9`` of the script alone, or of all shells that it is made of."""
    folder, python = tmp_path / "runs", tmp_path / "python"
    python.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
trap 'kill $!; exit 130' TERM
for word; do [[ $word == output_dir=* ]] && echo $$ >"{tmp_path}/pid_${{word##*/}}"; done
sleep 600 & wait
""")
    running = _begin(folder, python, *parts, start_new_session=True)
    files = [tmp_path / f"pid_{part}" for part in parts]
    while not all(file.exists() and file.read_text() for file in files):
        assert running.poll() is None
        time.sleep(0.02)
    members = [int(file.read_text()) for file in files]
    if shells:
        os.killpg(running.pid, signal.SIGKILL)  # what timeout starts is a group of its own
    running.kill()
    running.wait()
    assert running.stdout is not None
    running.stdout.close()
    for words in (parts, ("--lanes",)):
        again = _begin(folder, python, *words)
        said = again.communicate()[0]
        assert again.returncode == 2, said
        assert "parts of one that was killed: wait for them, or end them with --stop" in said
    assert "not done yet" in _begin(folder, python, "--wait", "0").communicate()[0]
    assert all(Path(f"/proc/{member}").exists() for member in members)
    stopped = _begin(folder, python, "--stop")
    assert "nothing is running" in stopped.communicate()[0]
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\nexit 0\n')
    again = _begin(folder, python, *parts)
    again.communicate()
    assert (again.returncode, dict(_ends(folder))) == (0, dict.fromkeys(parts, "0"))


_COUNTS_SIGNALS = """import os, signal, sys, time
from pathlib import Path
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
(part,) = (Path(word).name for word in sys.argv if word.startswith("output_dir="))
place = Path({place!r})
if (place / f"begun_{{part}}").exists():  # whom its time cut off goes on at the end
    sys.exit(0)
(place / f"begun_{{part}}").write_text(str(os.getppid()))
while not got:
    time.sleep(0.02)
for _ in range(50):  # as a run that writes its last page
    time.sleep(0.02)
(place / f"signals_{{part}}").write_text(str(len(got)))
sys.exit(130)
"""


@pytest.mark.parametrize("how", ["stopped", "stopped in a lane", "Ctrl-C", "its time is over"])
@pytest.mark.parametrize("parts", [("llava_energy",), ("qwen3_cudagraph", "qwen3_eager")])
def test_one_stop_is_one_signal_for_whoever_measures(tmp_path: Path, parts: tuple[str, ...], how: str) -> None:
    """A second one would cost a run its page: each had it from several sides."""
    folder, python, counts = tmp_path / "runs", tmp_path / "python", tmp_path / "counts.py"
    counts.write_text(_COUNTS_SIGNALS.format(place=str(tmp_path)))
    python.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec "{sys.executable}" "$@"
exec "{sys.executable}" "{counts}" "$@"
""")
    lanes = ("--lanes",) if how == "stopped in a lane" else ()
    running = _begin(folder, python, *lanes, *parts, start_new_session=True, LANES="1")
    begun = [tmp_path / f"begun_{part}" for part in parts]
    while not all(file.exists() and file.read_text() for file in begun):
        assert lanes or running.poll() is None
        time.sleep(0.02)
    if how == "Ctrl-C":
        os.killpg(running.pid, signal.SIGINT)
    elif how == "its time is over":
        for file in begun:
            os.kill(psutil.Process(int(file.read_text())).ppid(), signal.SIGALRM)  # as timeout's own clock does
    else:
        assert "nothing is running" in _begin(folder, python, "--stop").communicate()[0]
    running.communicate()
    assert {part: (tmp_path / f"signals_{part}").read_text() for part in parts} == dict.fromkeys(parts, "1")
    assert dict(_ends(folder)[: len(parts)]) == dict.fromkeys(parts, "124" if how == "its time is over" else "143")
    for lock in folder.glob("*.lock"):
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_SERVES = """import os, signal, sys, time
from pathlib import Path
name, seconds = sys.argv[1], int(sys.argv[2])
place = Path({place!r})
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: got.append(1))
(place / f"begun_{{name}}").write_text(str(os.getpid()))
while not got:
    time.sleep(0.02)
for _ in range(seconds * 50):  # as a server that lets its requests end
    time.sleep(0.02)
(place / f"signals_{{name}}").write_text(str(len(got)))
"""


@pytest.mark.parametrize("how", ["stopped", "stopped in a lane", "Ctrl-C", "its time is over"])
def test_one_stop_is_one_signal_for_a_server(tmp_path: Path, how: str) -> None:
    """vLLM's server lets its requests end at the first one and dies at the second."""
    folder, server = tmp_path / "runs", _stopped_with_a_server(tmp_path, how, seconds=1)
    assert not server.is_running()
    assert [(tmp_path / f"signals_{name}").read_text() for name in ("server", "client")] == ["1", "1"]
    assert _ends(folder)[0] == ("llava_endpoint", "124" if how == "its time is over" else "143")


def test_a_server_that_does_not_end_is_killed(tmp_path: Path) -> None:
    server = _stopped_with_a_server(tmp_path, "stopped", seconds=600, SERVER_ENDS_S="1")
    assert not server.is_running()


def _stopped_with_a_server(tmp_path: Path, how: str, *, seconds: int, **environment: str) -> psutil.Process:
    """Stop the part that serves while it measures; the server takes ``seconds`` to end."""
    folder, python, serves = tmp_path / "runs", tmp_path / "python", tmp_path / "serves.py"
    serves.write_text(_SERVES.format(place=str(tmp_path)))
    python.write_text(f"""#!/bin/bash
case $* in
*urllib*) [ -e "{tmp_path}/begun_server" ]; exit ;;
*metadata*) exit 0 ;;
*experiment=export*) exit 0 ;;
"-m vllm."*) exec "{sys.executable}" "{serves}" server {seconds} ;;
"-m vlmbench "*) [ -e "{tmp_path}/begun_client" ] || exec "{sys.executable}" "{serves}" client 1 ;;
*) exec "{sys.executable}" "$@" ;;
esac
""")
    lanes = ("--lanes",) if how == "stopped in a lane" else ()
    running = _begin(folder, python, *lanes, "llava_endpoint", start_new_session=True, LANES="1", **environment)
    begun = [tmp_path / f"begun_{name}" for name in ("server", "client")]
    while not all(file.exists() and file.read_text() for file in begun):
        assert lanes or running.poll() is None
        time.sleep(0.02)
    server = psutil.Process(int(begun[0].read_text()))
    if how == "Ctrl-C":
        os.killpg(running.pid, signal.SIGINT)
    elif how == "its time is over":
        os.kill(server.parents()[2].pid, signal.SIGALRM)  # timeout, as its own clock does
    else:
        assert "nothing is running" in _begin(folder, python, "--stop").communicate()[0]
    running.communicate()
    return server


def test_a_call_that_means_nothing_begins_and_leaves_nothing(tmp_path: Path) -> None:
    python, bare = tmp_path / "python", tmp_path / "bare"
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\ntouch "{tmp_path}/measured"\n')
    bare.write_text("#!/bin/bash\nexit 1\n")
    bare.chmod(0o755)
    (tmp_path / "file").touch()
    for words, environment, told in (
        ((), {}, "the folder to measure into stands first (got '')"),
        (("--list",), {}, "stands first (got '--list')"),
        ((str(tmp_path / "file"),), {}, "File exists"),
        ((str(tmp_path / "runs"), ""), {}, "no part is called ''; parts: llava_eager_phase1 "),
        ((str(tmp_path / "runs"), "--lanes", ""), {}, "no part is called ''"),
        ((str(tmp_path / "runs"), "llava_eager"), {"PYTHON": str(bare)}, "has not what vlmbench needs"),
        ((str(tmp_path / "runs"), "--lanes"), {"PYTHON": str(bare)}, "has not what vlmbench needs"),
        ((str(tmp_path / "runs"), "llava_eager"), {"SECONDS_LEFT": "soon"}, "SECONDS_LEFT must be a whole number"),
        ((str(tmp_path / "runs"), "--lanes"), {"LANES": "two"}, "LANES must be a whole number (got 'two')"),
    ):
        running = _call(*words, python=python, cwd=tmp_path, **environment)
        said = running.communicate()[0]
        assert (running.returncode, told in said) == (2, True), (words, said)
    assert not (tmp_path / "measured").exists()
    left = {path.name for path in tmp_path.iterdir()} | {path.name for path in (tmp_path / "runs").iterdir()}
    assert left == {"python", "bare", "file", "runs", "tree"}


def test_a_pack_lies_where_it_was_asked_for_or_fails(tmp_path: Path) -> None:
    folder, python = tmp_path / "runs", tmp_path / "python"
    (folder / "logs").mkdir(parents=True)
    python.write_text("")
    for name, status in (("packed", 0), ("nowhere/packed", 1)):
        packing = _begin(folder, python, "--pack", name, cwd=tmp_path)
        said = packing.communicate()[0]
        assert (packing.returncode, "not all is in" in said) == (status, bool(status)), said
    assert (tmp_path / "packed.0").is_file()


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _measured(folder: Path) -> list[dict[str, Any]]:
    return [row for row in _rows(folder) if row["status"] == "ok"]


@pytest.mark.slow
def test_members_run_one_at_a_time_and_one_that_is_killed_is_resumed(tmp_path: Path) -> None:
    folder, python = tmp_path / "runs", tmp_path / "python"
    python.write_text(f"""#!/bin/bash
for word; do [[ $word == output_dir=* ]] && echo $$ >"{tmp_path}/${{word##*/}}.pid"; done
exec "{sys.executable}" "$@"
""")
    running = _begin(folder, python, "qwen3_cudagraph", "qwen3_eager", SMALL="1")
    one, other = folder / "qwen3_cudagraph", folder / "qwen3_eager"
    while not (_measured(one) and _measured(other)):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    os.kill(int((tmp_path / "qwen3_eager.pid").read_text()), signal.SIGKILL)
    said = running.communicate()[0]
    assert _ends(folder) == [("qwen3_eager", "137"), ("qwen3_cudagraph", "0"), ("qwen3_eager", "0")], said
    assert running.returncode == 1, "one of them had failed"

    whole = _measured(one)
    before = [row for row in _measured(other) if row.get("turn")]
    assert {row["turn"] for row in whole}.isdisjoint(row["turn"] for row in before)
    together = sorted([*whole, *before], key=lambda row: float(row["started_unix_s"]))
    for row, following in pairwise(together):
        assert row["started_unix_s"] + row["T_total"] / 1e3 <= following["started_unix_s"], "one at a time"
    for turn, rows in groupby((row for row in whole if row["mode"] == "instrumented"), key=lambda row: row["turn"]):
        assert len(list(rows)) <= 2, turn
    for part in (one, other):
        assert len([row for row in _measured(part) if row["mode"] == "instrumented"]) == 6
    sessions = [json.loads((part / "provenance.json").read_text())["sessions"] for part in (one, other)]
    assert [len(found) for found in sessions] == [1, 2]
    assert sessions[0][0]["turns"]["id"] == sessions[1][0]["turns"]["id"]
    assert "turns" not in sessions[1][1], "it went on alone"


@pytest.mark.slow
def test_a_lane_that_is_stopped_leaves_each_run_its_last_words(tmp_path: Path) -> None:
    folder, python, parts = tmp_path / "runs", tmp_path / "python", ("qwen3_cudagraph", "qwen3_eager")
    python.write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    _begin(folder, python, "--lanes", *parts, SMALL="1", LANES="1").communicate()
    while not all(_measured(folder / part) for part in parts):
        time.sleep(0.02)
    assert "nothing is running" in _begin(folder, python, "--stop").communicate()[0]
    assert dict(_ends(folder)) == dict.fromkeys(parts, "143")
    for part in parts:
        log = (folder / "logs" / f"{part}.log").read_text()
        assert "interrupted after" in log
        assert "stopped again" not in log
        assert json.loads((folder / part / "outcome.json").read_text())["state"] == "interrupted"
