#!/usr/bin/env bash
# The runs behind docs/results on one card, part by part as scripts/results.txt lists them.
#
#   scripts/results.sh DIR                  every part in its order, each within its time
#   scripts/results.sh DIR PART…            these; PART may be a pattern: 'llava_*_phase1'
#   SECONDS_LEFT=580 scripts/results.sh DIR begins no part that does not fit into what is left
#   SMALL=1 scripts/results.sh DIR          the tiny model and few runs: tries every command on any machine
#
# A part that is done is left as it is, one that was cut short goes on where it stopped. Rows only: the reports are made
# from them anywhere, by `python -m vlmbench experiment=report runs=DIR`. DIR/parts.tsv says how each part ended.
set -uo pipefail
out=${1:?DIR}; shift
python=${PYTHON:-python3}
manifest="$(dirname "$0")/results.txt"
mkdir -p "$out"
phase1='dataset.num_samples=404 output.tokens=16 measurement.bare_every=0 measurement.reference=false measurement.trace_requests=5'
sweep='measurement.bare_every=0 measurement.stopping.min_samples=20 measurement.stopping.max_samples=40'
small=()
if [ -n "${SMALL:-}" ]; then
    phase1='dataset.num_samples=6 output.tokens=4 measurement.bare_every=0 measurement.reference=false'
    sweep='measurement.bare_every=0 measurement.stopping.min_samples=2 measurement.stopping.max_samples=2'
    small=(model=tiny)
fi

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
    arguments=${arguments//\{phase1\}/$phase1}
    arguments=${arguments//\{sweep\}/$sweep}
    read -ra words <<<"$arguments"
    echo "=== $name: python -m vlmbench ${words[*]}"
    began=$SECONDS
    "$python" -m vlmbench "${words[@]}" "${small[@]}" measurement.time_limit_s="$limit" report=none progress=false \
        output_dir="$out/$name" </dev/null 2>&1 | grep -v '^\[transformers\]' | tail -n "${LINES_SHOWN:-6}"
    status=${PIPESTATUS[0]}
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" >>"$out/parts.tsv"
    echo "=== $name: exit $status after $((SECONDS - began)) s"
    [ "$status" = 0 ] || failed=1
done <"$manifest"
if [ $found = 0 ]; then
    echo "no part is called '$*'; parts: $(grep -v '^#' "$manifest" | cut -d'|' -f1 | xargs)" >&2
    exit 2
fi
exit $failed
