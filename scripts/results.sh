#!/usr/bin/env bash
# The runs behind docs/results, part by part as scripts/results.txt lists them, all of one state of the code: the first call
# copies the checkout to DIR/tree, and that is what is measured from then on, whatever becomes of the checkout.
#
#   scripts/results.sh DIR                    every part in its order, each within its time
#   scripts/results.sh DIR PART…              these, in this order; PART may be a pattern: 'llava_*'
#   scripts/results.sh DIR --lanes [PART…]    in the background, a lane a GPU: its parts, half of the processors, own caches
#   scripts/results.sh DIR --wait SECONDS     waits for what measures, at most so long, and says how far the lanes are
#   scripts/results.sh DIR --stop             ends it, and what a call that was killed left running; what was measured stays
#   scripts/results.sh DIR --pack FILE        what is published, and logs, in FILE.0, FILE.1 … of 15 MB (cat FILE.* | tar xz)
#   scripts/results.sh DIR --list             each part with its lane and group, its time and its whole command
#   SECONDS_LEFT=580 scripts/results.sh DIR   begins no part that does not fit into what is left
#   PYTHON=.venv/bin/python  that has what vlmbench needs; python3 if not given
#   VLLM_SITE=DIR    where vLLM's packages lie if they are not installed: put before all others, for its parts only
#   RUNS_OF_A_TURN=8  of a part of a group, before the next has its turn
#   SMALL=1 scripts/results.sh DIR            the tiny model and few runs: tries every command on any machine with two
#                                             processors a lane
#
# Parts of a group (a letter behind the lane in results.txt) that stand in a row run at the same time, each a process of its
# own, and measure in turns of a few runs, so that a slow hour of the machine is all of theirs. One of them alone runs as
# any other part does. Each may take as long as the group.
#
# The same call goes on: a part that is done is left as it is, one that was cut short continues. DIR/parts.tsv says how each
# ended (part, exit status, seconds, code, when), DIR/logs what it said. Reports are made anew from the rows anywhere, by
# `python -m vlmbench experiment=report runs=DIR/PART`. To measure another state of the code, take another DIR.
set -uo pipefail
shopt -s extglob
if [[ ${1:-} == @(|-*) ]]; then
    echo "the folder to measure into stands first (got '${1:-}'): scripts/results.sh DIR [--lanes|--wait|--stop|--pack|--list] [PART…]" >&2
    exit 2
fi
for name in SECONDS_LEFT RUNS_OF_A_TURN LANES; do
    [[ ${!name:-0} == +([0-9]) ]] || { echo "$name must be a whole number (got '${!name}')" >&2; exit 2; }
done
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
root=$(cd "$(dirname "$0")/.." && pwd) tree=$out/tree
PYTHON=${PYTHON:-python3}
[[ $PYTHON == */* ]] && PYTHON=$(realpath -s "$PYTHON")
[ -n "${VLLM_SITE:-}" ] && VLLM_SITE=$(realpath "$VLLM_SITE")
export PYTHON VLLM_SITE=${VLLM_SITE:-} HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0}

study="--config-dir scripts/results experiment=measured"
requests=404 fewer=72 tokens=8 repeats=40 small=() runs_of_a_turn=${RUNS_OF_A_TURN:-8}
if [ -n "${SMALL:-}" ]; then # fewer runs of the tiny model, with the same settings
    export REQUESTS=6 TOKENS=4 USERS=[1,2] RATES=[4]
    requests=6 fewer=6 tokens=4 repeats=2 small=(model=tiny) runs_of_a_turn=2
fi
also='measurement.reference=false measurement.change_processor=true'
phase1="experiment=phase1 dataset.num_samples=$requests output.tokens=$tokens measurement.bare_every=8 $also"
other="${phase1/num_samples=$requests /num_samples=$fewer } measurement.warmup.max_runs=2 measurement.trace_requests=0" # P95 needs 72
many="experiment=phase1 output.tokens=$tokens $also" # P99 needs 368 requests that are worth independent ones: results.txt says of how many
few='experiment=interventions measurement.change_processor=true measurement.trace_requests=0'
few+=" measurement.stopping.min_samples=$repeats measurement.stopping.max_samples=$repeats"
shared='runtime.engine_options={gpu_memory_utilization:0.3,kv_cache_memory_bytes:17179869184}' # beside others on a card
limits='load.ttft_limit_ms=200 load.tpot_limit_ms=20' # goodput: what a reader of a chat waits for, and reads
load="experiment=phase1 output.tokens=$tokens measurement.reference=false runtime=vllm runtime.engine_options={max_num_seqs:128} $limits"
arms="$few sweep.axes.intervention.keep=[1,0.5,0.25,0.11] output.tokens=8"

commands() { # name, lane with the letter of its group, seconds, command: a line a part
    local name lane limit words
    while IFS='|' read -r name lane limit words; do
        name=${name// /} lane=${lane// /} limit=${limit// /}
        [[ -z $name || $name == \#* ]] && continue
        [ -n "${SMALL:-}" ] && words=${words/\{study\}_*([^ ])/"{study}_small"}
        words=${words//\{study\}/$study} words=${words//\{phase1\}/$phase1} words=${words//\{arms\}/$arms}
        words=${words//\{few\}/$few} words=${words//\{other\}/$other} words=${words//\{many\}/$many} words=${words//\{load\}/$load} words=${words//\{shared\}/$shared}
        read -r words <<<"$words"
        [ -n "${SMALL:-}" ] && words=${words//samples=1[05]0/samples=40} words=${words//num_samples=+([0-9])/num_samples=${REQUESTS}} words=${words/ms=150 percentile=75/ms=600 percentile=50}
        # the tiny model has too few layers for methods that drop before a layer
        [[ -n ${SMALL:-} && $words == *intervention=* ]] && words+=' model.config.text_config.num_hidden_layers=26'
        printf '%s\t%s\t%s\t%s\n' "$name" "$lane" "$limit" "$words"
    done <"$root/scripts/results.txt"
}

ordered() { # name, seconds, group or -, command of the parts that were asked for, as they were; in a lane its own
    local pattern name lane limit words listed=" "
    for pattern in "${@:-*}"; do
        while IFS=$'\t' read -r name lane limit words; do
            # shellcheck disable=SC2053 (a pattern on purpose)
            [[ $name == $pattern && $listed != *" $name "* ]] || continue
            [[ $lane == - && $# = 0 ]] && continue
            [[ -n ${LANE:-} && ($lane == - || $((${lane%[a-z]} % LANES)) != "$LANE") ]] && continue
            listed+="$name "
            [[ $lane == *[a-z] ]] || lane=-
            printf '%s\t%s\t%s\t%s\n' "$name" "$limit" "$lane" "$words"
        done < <(commands)
    done
}

how() { [ -f "$out/parts.tsv" ] && awk -F'\t' -v part="$1" '$1 == part {status = $2} END {print status}' "$out/parts.tsv"; }

ended() { # note how a part did
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$((SECONDS - $3))" "$source" "$(date -u +%FT%TZ)" >>"$out/parts.tsv"
    echo "=== $1: exit $2 after $((SECONDS - $3)) s"
}

part() { # NAME SECONDS COMMAND [MORE]…: measure one
    local name=$1 limit=$2 began=$SECONDS path=$tree${PYTHONPATH:+:$PYTHONPATH} status=0 words command process='' stopped='' of=()
    read -ra words <<<"$3"
    while [[ ${words[0]} == +([A-Z0-9_])=* ]]; do # variables of its environment stand before its words
        of=("${of[@]:-env}" "${words[0]}")
        words=("${words[@]:1}")
    done
    if [[ ${words[0]} == *.sh ]]; then
        [ -n "${SMALL:-}" ] && words=("${words[0]}" tiny)
        command=("${of[@]}" "$tree/${words[0]}" "$out/$name" "${words[@]:1}")
    else
        [[ $3 == *runtime=vllm* ]] && path=${VLLM_SITE:+$VLLM_SITE:}$path
        command=("${of[@]}" "$PYTHON" -m vlmbench "${words[@]}" "${small[@]}" "${@:4}" report=none progress=false "output_dir=$out/$name")
    fi
    mkdir -p "$out/logs"
    echo "=== $(date -u +%FT%TZ) ${command[*]}" >>"$out/logs/$name.log"
    # Ctrl-C does not reach what timeout starts, a group of its own; it may take some seconds to end. It is stopped once,
    # however often this is told to (a second signal costs a run its page), and timeout signals its child and its group:
    # a shell is that child, so that what measures has one signal only.
    trap '[ -n "$stopped" ] || { stopped=${process:-early}; [ -z "$process" ] || kill -TERM "$process"; }' INT TERM HUP
    PYTHONPATH=$path timeout --signal=TERM --kill-after=60 "$limit" \
        bash -c 'trap "exit 143" TERM; "$@"; exit' "$name" "${command[@]}" </dev/null >>"$out/logs/$name.log" 2>&1 &
    process=$!
    [ "$stopped" != early ] || kill -TERM "$process"
    while kill -0 "$process" 2>/dev/null; do # a signal ends the waiting
        wait "$process"
        status=$?
    done
    grep -v '^\[transformers\]' "$out/logs/$name.log" | tail -n "${LINES_SHOWN:-6}"
    [[ -n $stopped && $status != 0 ]] && status=143
    ended "$name" "$status" "$began"
    [ -z "$stopped" ] || exit 143
    trap - INT TERM HUP
    return $status
}

together() { # GROUP PART…, each with its seconds and its command behind tabs: measure one alone, several in turns
    local group=$1 one name limit words names='' total=0 turns=$out/turns/$1 started=() failed=0 runs=() places
    shift
    for one in "$@"; do
        IFS=$'\t' read -r name limit words <<<"$one"
        names+=${names:+, }$name total=$((total + limit)) runs+=("$out/$name")
    done
    if [ -n "${SECONDS_LEFT:-}" ] && ((SECONDS + total > SECONDS_LEFT)); then
        echo "=== $names: does not fit into the $((SECONDS_LEFT - SECONDS)) s that are left (it may take $total s)"
        return 0
    elif [ $# = 1 ]; then
        echo "=== $name: $words"
        part "$name" "$limit" "$words"
        return
    fi
    mkdir -p "$turns"
    mapfile -t places < <("$PYTHON" -c 'import pathlib, sys
from vlmbench.machine.turns import member_name
for run in sys.argv[1:]: print(member_name(pathlib.Path(run)) + ".place")' "${runs[@]}")
    echo "=== group $group in turns, at most $total s: $names"
    # shellcheck disable=SC2046 (numbers) ; each notes its end
    trap 'kill -TERM $(jobs -pr) 2>/dev/null; wait; exit 143' INT TERM HUP
    for one in "$@"; do
        IFS=$'\t' read -r name limit words <<<"$one"
        echo "    $name: $words"
        (
            exec 7>"$turns/${places[${#started[@]}]}" # the others wait for as long as somebody holds it
            flock -s 7
            part "$name" "$total" "$words" "measurement.turns.directory=$turns" "measurement.turns.members=$#" "measurement.turns.runs=$runs_of_a_turn"
        ) &
        started+=($!)
    done
    for one in "${started[@]}"; do wait "$one" || failed=1; done
    trap - INT TERM HUP
    return $failed
}

known() { # refuse what no part is called, and a Python that can measure none, before anything begins
    local pattern
    for pattern in "$@"; do
        [[ -n $pattern && -n $(LANE='' ordered "$pattern") ]] && continue
        echo "no part is called '$pattern'; parts: $(commands | cut -f1 | xargs)" >&2
        exit 2
    done
    if ! "$PYTHON" -c 'import hydra' 2>/dev/null; then
        echo "$PYTHON has not what vlmbench needs: give one that has, PYTHON=.venv/bin/python" >&2
        exit 2
    fi
}

measure() { # measure the parts that were asked for
    local name limit group words turn failed=0 parts members before cache=$out/cache/${LANE:-0}
    parts=$(ordered "$@")
    if [ -z "$parts" ]; then
        echo "no part of lane $LANE is called '$*'" >&2
        exit 2
    fi
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
    export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$cache/vllm} PORT=${PORT:-$((8421 + ${LANE:-0}))}
    source=$("$PYTHON" -c 'from vlmbench.machine.installation import package_dir, source_sha256 as of; print(of(package_dir())[:8])') || exit 2
    for turn in 1 2; do # those that their time cut off go on when all others had theirs
        members=() before=-
        while IFS=$'\t' read -r name limit group words <&3; do
            [ "$turn" = 2 ] && [[ $(how "$name") != @(124|137) ]] && continue
            if [ "$(how "$name")" = 0 ] && [ -d "$out/$name" ]; then
                echo "=== $name: done before"
                continue
            fi
            if [[ ${#members[@]} != 0 && ($group == - || $group != "$before") ]]; then
                together "$before" "${members[@]}" || failed=1
                members=()
            fi
            members+=("$name"$'\t'"$limit"$'\t'"$words") before=$group
        done 3<<<"$parts"
        [ ${#members[@]} = 0 ] || together "$before" "${members[@]}" || failed=1
    done
    return $failed
}

lanes() { # start a lane for each GPU
    local cards number lane mine
    IFS=, read -ra cards <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,)}"
    number=${LANES:-${#cards[@]}}
    ((number > 0)) || number=1
    for ((lane = 0; lane < number; lane++)); do
        if ! flock -n "$out/lane_$lane.lock" true; then
            echo "lane $lane is running already"
            continue
        fi
        mine=$("$PYTHON" -c 'import os, sys
lane, lanes, every = int(sys.argv[1]), int(sys.argv[2]), sorted(os.sched_getaffinity(0))
print(*(every[lane * len(every) // lanes : (lane + 1) * len(every) // lanes] or every), sep=",")' "$lane" "$number")
        CUDA_VISIBLE_DEVICES=${cards[lane]:-} LANE=$lane LANES=$number setsid nohup \
            taskset -c "$mine" "$0" "$out" "$@" </dev/null >>"$out/lane_$lane.log" 2>&1 &
        echo "lane $lane: GPU ${cards[lane]:-none}, processors $mine, $out/lane_$lane.log"
    done
    sleep 1 # each holds its lock
}

held() { [ -e "$1" ] && ! flock -n "$1" true; } # whether a process has a lock

running() { # whether a lane is
    local lock
    for lock in "$out"/lane_*.lock; do
        held "$lock" && return 0
    done
    return 1
}

measured_alone() { # say that two that measure at once on one machine are latencies of neither
    echo "another call measures in $out, or parts of one that was killed: wait for them, or end them with --stop" >&2
}

wait_for() { # wait for the lanes, then say how far they are
    local log end=$((SECONDS + $1))
    while ((SECONDS < end)) && { running || held "$out/alone.lock"; }; do sleep 1; done
    for log in "$out"/lane_*.log; do
        [ -e "$log" ] && awk '/^=== .*: exit [0-9]+ after/ {said = said "\n    " $0; next} /^=== [^0-9]/ {said = $0} END {print said}' "$log" |
            sed "1s/^/$(basename "$log" .log): /" | cut -c1-150 # what began last, and what ended since
    done
    [ -f "$out/parts.tsv" ] && cat "$out/parts.tsv"
    if running || held "$out/alone.lock"; then echo "not done yet"; else echo "nothing is running"; fi
}

look_up() { # set parent and session to those of a process
    local line
    { read -r line <"/proc/$1/stat"; } 2>/dev/null && read -r _ parent _ session _ <<<"${line##*) }"
}

stop() { # end the lanes and all that they started, a session of processes each; and whoever else holds the lock
    local lock process parent session sessions=' ' parents=()
    for lock in "$out"/lane_*.lock; do
        held "$lock" && sessions+="$(cat "${lock%.lock}.session" 2>/dev/null) "
    done
    for process in /proc/[0-9]*; do
        look_up "${process#/proc/}" || continue
        [[ $sessions == *" $session "* || $process/fd/8 -ef $out/alone.lock ]] && parents[${process#/proc/}]=$parent
    done
    for process in "${!parents[@]}"; do # who was started by another of them hears of it from that one, and once
        [ -n "${parents[${parents[process]}]:-}" ] || kill -TERM "$process" 2>/dev/null
    done
    wait_for 65 # what does not end is killed after 60
}

pack() { # FILE: all that is needed to publish elsewhere
    local status
    [ -d "$out/logs" ] || { echo "nothing was measured in $out" >&2; exit 2; }
    tar -C "$out" -cz --exclude="./${1#"$out/"}.*" --exclude=./tree --exclude=./cache --exclude=./turns --exclude='./*/model' --exclude='*.pdf' --exclude='*.html' . |
        split -d -a 1 -b 15000000 - "$1."
    status=("${PIPESTATUS[@]}")
    if ((status[0] > 1 || status[1] > 0)); then # 1: a file changed while it was read
        echo "not all is in $1.*" >&2
        exit 1
    fi
    ls -l "$1".*
}

if [ "${1:-}" = --list ]; then commands; exit; fi
if [ "$root" != "$tree" ]; then
    state=(vlmbench conf hydra_plugins scripts pyproject.toml)
    if [ ! -e "$tree" ]; then
        copy=$(mktemp -d "$out/tree.XXXXXX")
        tar -C "$root" --exclude=__pycache__ -c "${state[@]}" | tar -C "$copy" -x || exit 2
        mv -T "$copy" "$tree" 2>/dev/null || rm -r "$copy" # another call was faster
    fi
    changed=$(for name in "${state[@]}"; do diff -rq --exclude=__pycache__ "$root/$name" "$tree/$name"; done)
    [ -z "$changed" ] || echo "measured is $tree; the checkout is not the same any more: $(wc -l <<<"$changed") files, first: $(head -n 1 <<<"$changed")" >&2
    exec "$tree/scripts/results.sh" "$out" "$@"
fi
called_in=$PWD
cd "$tree" || exit 2
case ${1:-} in
--lanes)
    known "${@:2}"
    held "$out/alone.lock" && { measured_alone; exit 2; }
    lanes "${@:2}"
    ;;
--wait)
    [[ ${2:-} =~ ^[0-9]+$ ]] || { echo "--wait needs whole seconds (got '${2:-}')" >&2; exit 2; }
    wait_for "$2"
    ;;
--stop) stop ;;
--pack)
    [ -n "${2:-}" ] || { echo "--pack needs a FILE" >&2; exit 2; }
    pack "$(cd "$called_in" && realpath -m "$2")"
    ;;
--*) echo "'$1' is none of --lanes, --wait, --stop, --pack, --list" >&2; exit 2 ;;
*)
    if [ -n "${LANE:-}" ]; then # all that it starts holds the lock too
        exec 9>"$out/lane_$LANE.lock"
        flock -n 9 || { echo "lane $LANE is running already"; exit 2; }
        look_up $$ && echo "$session" >"$out/lane_$LANE.session"
    else
        known "$@"
        exec 8>"$out/alone.lock" # all that it starts holds the lock too, and longer than a call that is killed
        flock -w 1 8 || { measured_alone; exit 2; } # a look at it takes a moment
        running && { echo "lanes are running in $out: --wait SECONDS, or --stop" >&2; exit 2; }
    fi
    measure "$@"
    ;;
esac
