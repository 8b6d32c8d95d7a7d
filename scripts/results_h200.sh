#!/usr/bin/env bash
# The runs behind docs/results/h200_*: LLaVA-1.5-7B in full, scaling of two 7B models, a profile of seven models.
# Random weights, so nothing is downloaded; each part fits ten minutes on one GPU.
#
#   scripts/results_h200.sh PART DIR
#   PART: check, instrument, phase1, scaling, compiled, models; on two GPUs: large, tensor_parallel
#   REPORT=none only measures (reports can be written later from the rows); MODELS and PHASES choose parts.
set -uo pipefail
part=${1:?PART} out=${2:?DIR}
python=${PYTHON:-python3}
launcher=vlmbench
run() {
    local name=$1; shift
    echo "=== $name: $*"
    SECONDS=0
    "$python" -m $launcher "$@" ${REPORT:+report=$REPORT} output_dir="$out/$name" 2>&1 | grep -v '^\[transformers\]' | tail -n "${LINES_SHOWN:-45}"
    echo "=== $name took $SECONDS s, exit ${PIPESTATUS[0]}"
}
vision_tokens() {
    case $1 in
        llava_1_5_7b) echo '[576,1152,1728,2304,2880,3456]' ;; # whole images only
        *) echo '[64,128,256,384,512,768,1024,1536]' ;;
    esac
}
case $part in
    check)
        run check experiment=smoke 'probe=[timeline,memory,clocks,energy,kernels]'
        ;;
    instrument) # what marks cost here, MolmoE's decode beside plain transformers, the tests that need a GPU
        "$python" benchmarks/molmoe_decode.py 2>&1 | tee "$out/molmoe_decode.txt"
        "$python" benchmarks/mark_cost.py 2>&1 | tee "$out/mark_cost.txt"
        "$python" -m pytest -q -m gpu -rs tests/probes tests/records/test_provenance.py 2>&1 | tail -n 15
        ;;
    phase1)
        run phase1_llava_1_5_7b experiment=phase1 model=llava_1_5_7b dataset.num_samples=200 output.tokens=32 \
            measurement.bare_every=3 measurement.time_limit_s=420
        ;;
    scaling)
        for model in ${MODELS:-llava_1_5_7b qwen2_5_vl_7b}; do
            vision=$(vision_tokens "$model")
            case ${PHASES:-23} in *2*)
                run "phase2_$model" experiment=phase2 model="$model" "sweep.axes.vision_tokens=$vision" \
                    measurement.stopping.max_time_s=10 measurement.bare_every=4 ;;
            esac
            case ${PHASES:-23} in *3*)
                run "phase3_$model" experiment=phase3 model="$model" 'sweep.axes.output_tokens=[8,16,24,32,48,64,96]' \
                    measurement.stopping.max_time_s=30 measurement.bare_every=0 ;;
            esac
            [ "${REPORT:-}" = none ] || run "comparison_$model" experiment=token_comparison \
                "phase2_results=$out/phase2_$model" "phase3_results=$out/phase3_$model"
        done
        ;;
    compiled) # decode compiled into one graph: what is left when the host hardly matters
        for model in ${MODELS:-llava_1_5_7b qwen2_5_vl_7b}; do
            common="model=$model runtime=compiled measurement.bare_every=0 measurement.stopping.min_samples=20"
            run "phase3_compiled_$model" experiment=phase3 $common \
                'sweep.axes.output_tokens=[16,32,48,64,96,128,192,256]'
            run "phase2_compiled_$model" experiment=phase2 $common "sweep.axes.vision_tokens=$(vision_tokens "$model")"
        done
        ;;
    models)
        for model in ${MODELS:-molmoe_1b molmo_7b_d qwen2_5_vl_7b qwen3_vl_8b internvl3_8b gemma3_4b}; do
            LINES_SHOWN=12 run "phase1_$model" experiment=phase1 model=$model dataset.num_samples=200 output.tokens=8 \
                measurement.bare_every=10 measurement.reference=false measurement.warmup.max_runs=2 \
                measurement.warmup.output_tokens=2 measurement.time_limit_s=150
        done
        ;;
    large)
        run phase1_qwen2_5_vl_72b experiment=phase1 model=qwen2_5_vl_72b runtime.device_map=auto dataset.num_samples=200 \
            output.tokens=8 measurement.bare_every=0 measurement.reference=false measurement.warmup.max_runs=2 \
            measurement.warmup.output_tokens=2 measurement.time_limit_s=260
        ;;
    tensor_parallel) # one model on one GPU, then every layer of it on GPUS of them
        gpus=${GPUS:-2}
        for model in ${MODELS:-qwen2_5_vl_7b}; do
            profile="experiment=phase1 model=$model dataset.num_samples=20 output.tokens=16 measurement.bare_every=5
                measurement.reference=false measurement.warmup.max_runs=3"
            launcher=vlmbench
            run "phase1_${model}_tp1" $profile
            launcher="torch.distributed.run --standalone --nproc-per-node $gpus -m vlmbench"
            run "phase1_${model}_tp$gpus" $profile runtime.tp_plan=auto
        done
        ;;
    *)
        echo "PART must be check, instrument, phase1, scaling, compiled, models, large or tensor_parallel (got '$part')" >&2
        exit 2
        ;;
esac
