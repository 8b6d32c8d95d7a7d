#!/usr/bin/env bash
# The runs behind docs/results on one card, part by part as scripts/results.txt lists them.
#
#   scripts/results.sh DIR                  every part in its order, each within its time
#   scripts/results.sh DIR PART…            these; PART may be a pattern: 'llava_*'
#   SECONDS_LEFT=580 scripts/results.sh DIR begins no part that does not fit into what is left
#   VLLM_SITE=DIR    where vLLM's packages lie if they are not installed: put before all others, for its parts only
#   SMALL=1 scripts/results.sh DIR          the tiny model and few runs: tries every command on any machine
#
# On a host of several cards, one call for each (CUDA_VISIBLE_DEVICES, taskset) with the parts of one model. A part that is
# done is left as it is, one that was cut short goes on where it stopped. The reports are made anew from the rows anywhere,
# by `python -m vlmbench experiment=report runs=DIR/PART`. DIR/parts.tsv says how each part ended.
set -uo pipefail
shopt -s extglob
out=${1:?DIR}; shift
python=${PYTHON:-python3}
here=$(dirname "$0")
study="--config-dir $here/results experiment=measured"
phase1='experiment=phase1 dataset.num_samples=404 output.tokens=8 measurement.bare_every=8 measurement.reference=false'
arms='experiment=interventions sweep.axes.intervention.keep=[1,0.5,0.25,0.11] output.tokens=8 measurement.trace_requests=0 measurement.stopping.min_samples=40 measurement.stopping.max_samples=40'
small=()
if [ -n "${SMALL:-}" ]; then
    phase1='experiment=phase1 dataset.num_samples=6 output.tokens=4 measurement.reference=false'
    arms='experiment=interventions sweep.axes.intervention.keep=[1,0.5] output.tokens=2 measurement.stopping.min_samples=2 measurement.stopping.max_samples=2'
    small=(model=tiny)
fi
mkdir -p "$out"

wanted() { # whether a part was asked for
    local name=$1 pattern; shift
    [ $# = 0 ] && return 0
    for pattern; do
        # shellcheck disable=SC2053 (a pattern on purpose)
        [[ $name == $pattern ]] && return 0
    done
    return 1
}

failed=0 found=0
while IFS='|' read -r name limit arguments; do
    name=${name// /} limit=${limit// /}
    [[ -z $name || $name == \#* ]] && continue
    wanted "$name" "$@" || continue
    found=1
    if [ -n "${SECONDS_LEFT:-}" ] && ((SECONDS + limit > SECONDS_LEFT)); then
        echo "=== $name: does not fit into the $((SECONDS_LEFT - SECONDS)) s that are left (it may take $limit s)"
        continue
    fi
    [ -n "${SMALL:-}" ] && arguments=${arguments/\{study\}_*([^ ])/"{study}_small"}
    arguments=${arguments//\{study\}/$study}
    arguments=${arguments//\{phase1\}/$phase1}
    arguments=${arguments//\{arms\}/$arms}
    # the tiny model has no layer 2, before which FastV drops
    [[ -n ${SMALL:-} && $arguments == *intervention=fastv* ]] && arguments+=' intervention.layer=1'
    read -ra words <<<"$arguments"
    path=${PYTHONPATH:-}
    [[ $arguments == *runtime=vllm* ]] && path=${VLLM_SITE:+$VLLM_SITE:}$path
    echo "=== $name: python -m vlmbench ${words[*]}"
    began=$SECONDS
    PYTHONPATH=$path timeout --signal=TERM --kill-after=60 "$limit" \
        "$python" -m vlmbench "${words[@]}" "${small[@]}" report=none progress=false output_dir="$out/$name" \
        </dev/null 2>&1 | grep -v '^\[transformers\]' | tail -n "${LINES_SHOWN:-6}"
    status=${PIPESTATUS[0]}
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" >>"$out/parts.tsv"
    echo "=== $name: exit $status after $((SECONDS - began)) s"
    [ "$status" = 0 ] || failed=1
done <"$here/results.txt"
if [ $found = 0 ]; then
    echo "no part is called '$*'; parts: $(grep -v '^#' "$here/results.txt" | cut -d'|' -f1 | xargs)" >&2
    exit 2
fi
exit $failed
