#!/usr/bin/env bash
# A deployed server asked over HTTP: `vllm serve` with a model of random weights on the device here, phase 1 through
# runtime=endpoint in closed loop (users) and in open loop (requests a second). Nothing is downloaded.
#
#   scripts/gpu/endpoint.sh DIR [MODEL]     about three minutes for a 7B on an H200; run again to continue
#   PYTHON=python3 SERVER_PYTHON=python3    the server may have an environment of its own
#   VLLM_SITE=DIR                           where vLLM's packages lie if they are not installed: for the server only
#   USERS=[1,2,4,8,16] RATES=[4,8,12] REQUESTS=100 TOKENS=32 PORT=8421 TTFT_LIMIT_MS=200 TPOT_LIMIT_MS=20
#   SERVE_OPTIONS="--enforce-eager"
#   SERVER_ENDS_S=45   so long the server may take to end before it is killed
set -uo pipefail
out=$(realpath -m "${1:?usage: scripts/gpu/endpoint.sh DIR [MODEL]}") model=${2:-llava_1_5_7b} failed=0
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3} server_python=${SERVER_PYTHON:-${PYTHON:-python3}} port=${PORT:-8421}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}
mkdir -p "$out"
ask() { "$python" -m vlmbench -q "$@" progress=false report=none </dev/null 2>&1 | { grep -v '^\[transformers\]' || true; } | tail -n 8; }
[ -e "$out/model/config.json" ] || ask experiment=export "model=$model" output_dir="$out/model"
# shellcheck disable=SC2206 (options are words)
options=(--served-model-name vlm --load-format dummy --max-model-len 4096 --max-num-seqs 32 --no-enable-prefix-caching
    --mm-processor-cache-gb 0 --enable-per-request-metrics --enable-prompt-tokens-details ${SERVE_OPTIONS:-})
site=${VLLM_SITE:+$VLLM_SITE:}$PYTHONPATH
# the client, which has no device, cannot say what the server runs on
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader -i "${CUDA_VISIBLE_DEVICES:-0}" 2>/dev/null | head -n 1)
version=$(PYTHONPATH=$site "$server_python" -c 'import importlib.metadata as m; print(m.version("vllm"))' 2>/dev/null)
printf '{"device": "%s", "vllm": "%s", "command": "vllm serve MODEL %s"}\n' "$gpu" "$version" "${options[*]}" >"$out/server.json"
end_server() { # once: vLLM lets its requests end at the first signal and dies at the second
    trap '' INT TERM HUP EXIT
    [ -n "$server" ] || return
    kill "$server" 2>/dev/null
    for _ in $(seq "${SERVER_ENDS_S:-45}"); do # scripts/results.sh ends all after 60 s
        kill -0 "$server" 2>/dev/null || break
        sleep 1
    done
    kill -KILL -- "-$server" 2>/dev/null # with what it started; nobody else knows of its group
    wait "$server" 2>/dev/null
}
server=''
trap end_server EXIT
set -m # a group of its own: what signals this script signals its group
PYTHONPATH=$site "$server_python" -m vllm.entrypoints.cli.main serve "$out/model" --host 127.0.0.1 --port "$port" \
    "${options[@]}" </dev/null >"$out/server.log" 2>&1 &
server=$!
set +m
for _ in $(seq 300); do
    if ! kill -0 $server 2>/dev/null; then tail -n 20 "$out/server.log" >&2; exit 1; fi
    "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=2)" 2>/dev/null && break
    sleep 1
done
echo "the server answers after $SECONDS s"
to="experiment=phase1 runtime=endpoint runtime.base_url=http://127.0.0.1:$port/v1 runtime.model=vlm
    dataset.num_samples=${REQUESTS:-100} output.tokens=${TOKENS:-32} measurement.reference=false
    load.ttft_limit_ms=${TTFT_LIMIT_MS:-200} load.tpot_limit_ms=${TPOT_LIMIT_MS:-20}"
# shellcheck disable=SC2086
ask $to load=closed "sweep.axes.load.concurrency=${USERS:-[1,2,4,8,16]}" output_dir="$out/closed" || failed=1
# shellcheck disable=SC2086
ask $to load=open "sweep.axes.load.rate_per_s=${RATES:-[4,8,12]}" output_dir="$out/open" || failed=1
echo "rows are in $out/closed and $out/open"
exit $failed
