#!/usr/bin/env bash
# runtime=vllm (CUDA graphs) beside runtime=cudagraph on one GPU: phase 1 of each, in turn, in fresh processes, so that
# both meet the same hour. Random weights, nothing is downloaded. Ends with the ratios and what vLLM's own figures say.
#
#   scripts/gpu/vllm.sh DIR [ROUNDS]        4 rounds of two models: about 25 minutes on an H200; run again to continue
#   MODELS="llava_1_5_7b qwen2_5_vl_7b" SAMPLES=120 TOKENS=32 PYTHON=python3 EAGER=1 (also without graphs, one round)
#   VLLM_SITE=DIR   where vLLM's packages lie if they are not installed: put before all others, for its runs only
set -uo pipefail
out=${1:?usage: scripts/gpu/vllm.sh DIR [ROUNDS]} rounds=${2:-4}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$out/vllm_cache} VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}
run() { # run NAME SITE WORDS…
    local name=$1 site=$2
    shift 2
    echo "=== $name: $*"
    SECONDS=0
    PYTHONPATH=${site:+$site:}$PYTHONPATH "$python" -m vlmbench -q experiment=phase1 "dataset.num_samples=${SAMPLES:-120}" \
        "output.tokens=${TOKENS:-32}" measurement.bare_every=3 measurement.trace_requests=0 "$@" output_dir="$out/$name" \
        2>&1 | grep -v '^\[transformers\]' | tail -n 12
    echo "=== $name took $SECONDS s, exit ${PIPESTATUS[0]}"
}
for model in ${MODELS:-llava_1_5_7b qwen2_5_vl_7b}; do
    for round in $(seq "$rounds"); do
        run "$model/vllm_$round" "${VLLM_SITE:-}" "model=$model" runtime=vllm
        run "$model/cudagraph_$round" "" "model=$model" runtime=cudagraph
    done
    # vLLM waits for the device around the encoder where it keeps its own time of it: a run apart, for that figure alone
    # (that of 0.26 keeps none in its newer model runner, which is its default)
    VLLM_USE_V2_MODEL_RUNNER=0 SAMPLES=20 run "$model/vllm_stats" "${VLLM_SITE:-}" "model=$model" runtime=vllm runtime.encoder_stats=true
    [ -z "${EAGER:-}" ] || run "$model/vllm_eager" "${VLLM_SITE:-}" "model=$model" runtime=vllm runtime.enforce_eager=true
    "$python" scripts/gpu/vllm_rounds.py "$out/$model" | tee "$out/$model/rounds.txt"
done
