#!/usr/bin/env bash
# A virtual environment in the checkout with vlmbench and everything it can use. Nothing is written outside it.
#
#   scripts/setup.sh PYTHON VENV NUMBER_OF_GPUS [no]
#
# All that is installed is in hashes.txt (scripts/hashes.py makes it) and is refused if its hash is not. "no" as the last
# word installs by the versions of constraints.txt alone, for an index that serves files of its own. Whatever is
# installed without its hash checked is said.
set -euo pipefail
python=$1 venv=$2 gpus=${3:-0} hashes=${4:-}

# A name on the path may be a shim for a version that is not active: only one that runs counts.
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }
for candidate in ${python:-python3 python3.12 python3.11}; do
    if suits "$candidate"; then
        found=$candidate
        break
    fi
done
[ -n "${found:-}" ] || { echo "vlmbench needs Python 3.11 or 3.12 (tried ${python:-python3, python3.12, python3.11}): make PYTHON=… " >&2; exit 2; }

[ -x "$venv/bin/python" ] || "$found" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
torch=$(grep -E '^torch==' constraints.txt)
extras=experiments,dev
[ "$gpus" -gt 0 ] && extras=all
tries=$venv/.tries

# hashed LINES…: install these lines of hashes.txt and nothing else.
hashed() {
    printf '%s\n' "$1" >"$venv/.requirements"
    "${pip[@]}" install -q --no-deps --no-build-isolation --require-hashes -r "$venv/.requirements" "${@:2}"
}
lines() { grep -E "$@" hashes.txt; }
unchecked() { echo "HASHES NOT CHECKED: $1" >&2; }
cpu_index=(--retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu)

echo "$venv: $("$found" --version); installing torch, then the rest: some minutes"
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    unchecked "torch, which is there already"
elif [ "$hashes" = no ]; then
    unchecked "torch"
    { [ "$gpus" -eq 0 ] && "${pip[@]}" install -q "$torch+cpu" 2>/dev/null; } ||
        { [ "$gpus" -eq 0 ] && "${pip[@]}" install -q "${cpu_index[@]}" "$torch" 2>/dev/null; } ||
        "${pip[@]}" install -q "$torch"
# The CPU build first, wherever one is: a plain install of torch on Linux pulls several GB of CUDA packages.
elif [ "$gpus" -eq 0 ] && { hashed "$(lines "^$torch\+cpu")" || hashed "$(lines "^$torch\+cpu")" "${cpu_index[@]}"; } 2>"$tries"; then
    :
elif hashed "$(lines "^$torch |# CUDA\$")" 2>>"$tries"; then
    :
else
    cat "$tries" >&2
    unchecked "$torch and what it brings: the index serves a build that is not in hashes.txt"
    "${pip[@]}" install -q "$torch"
fi

if [ "$hashes" = no ]; then
    unchecked "everything else"
    "${pip[@]}" install -q -c constraints.txt -e ".[$extras]"
    exit
fi
left='^(#|torch==)|# CUDA$'
[ "$gpus" -gt 0 ] || left="$left|^nvidia-ml-py=="
{ hashed "$(lines '^(setuptools|editables)==')" && hashed "$(lines -v "$left")"; } || {
    echo "$venv: the index does not serve the files of hashes.txt (see above)" >&2
    echo "make setup HASHES=no takes what it serves by version, without a check" >&2
    exit 2
}
# Everything is there: this adds the checkout, from no index.
"${pip[@]}" install -q --no-index --no-build-isolation -c constraints.txt -e ".[$extras]" 2>"$tries" || {
    cat "$tries" >&2
    unchecked "what hashes.txt lacks (see above): python scripts/hashes.py makes it anew"
    "${pip[@]}" install -q --no-build-isolation -c constraints.txt -e ".[$extras]"
}
