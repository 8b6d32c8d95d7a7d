#!/usr/bin/env bash
# A virtual environment in the checkout with vlmbench and everything it can use. Nothing is written outside it.
#
#   scripts/setup.sh PYTHON VENV NUMBER_OF_GPUS
set -euo pipefail
python=$1 venv=$2 gpus=${3:-0}

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
echo "$venv: $("$found" --version); installing torch, then the rest: some minutes"
torch=$(grep -E '^torch==' constraints.txt)
if "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "torch is there already"
elif [ "${gpus:-0}" -gt 0 ]; then
    "${pip[@]}" install -q "$torch"
else
    # The CPU build first, wherever one is: a plain install of torch on Linux pulls several GB of CUDA packages.
    "${pip[@]}" install -q "$torch+cpu" 2>/dev/null ||
        "${pip[@]}" install -q --retries 0 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null ||
        "${pip[@]}" install -q "$torch"
fi
extras=experiments,dev
[ "${gpus:-0}" -gt 0 ] && extras=all
"${pip[@]}" install -q -c constraints.txt -e ".[$extras]"
