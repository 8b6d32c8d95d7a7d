#!/usr/bin/env bash
# The Slurm tests on a real Slurm of their own: slurmctld, slurmd, slurmdbd and munge on loopback.
# usage: test-slurm.sh PYTHON [arguments of pytest]
set -eu
cd "$(dirname "$0")/.."
python=${1:?usage: test-slurm.sh PYTHON [arguments of pytest]}
shift
skip() { echo "SKIPPED the Slurm tests: $1" >&2; exit 0; }

if ! command -v slurmctld >/dev/null || ! command -v slurmdbd >/dev/null || ! command -v mariadbd >/dev/null; then
  [[ $(id -u) == 0 ]] || skip "Slurm is not installed, and installing it needs root"
  command -v apt-get >/dev/null || skip "Slurm is not installed, and there is no apt-get to install it with"
  scripts/slurm-local.sh install || skip "apt-get could not install Slurm"
fi
directory=$(mktemp -d "${TMPDIR:-/tmp}/vlmbench-slurm.XXXXXX")
trap 'scripts/slurm-local.sh stop "$directory"; rm -rf "$directory"' EXIT
# small arrays, so that splitting them is tested; a job that takes more memory than it asked for is killed for it
extra=$'MaxArraySize=6\nJobAcctGatherParams=OverMemoryKill'
line=$(SLURM_LOCAL_EXTRA=$extra scripts/slurm-local.sh start "$directory") || exit 1
eval "$line"
VLMBENCH_SLURM=$directory "$python" -m pytest -m slurm tests/slurm "$@"
