#!/usr/bin/env bash
# Runs the tests, and what failed beside others once more alone.
#   scripts/test.sh PYTHON [ARGUMENTS OF PYTEST]
# Why: they start real command lines, servers and browsers on a machine that the tests beside them keep busy. What only
# fails there says nothing of the change that is tested, and must not refuse it; what fails alone, too, does. It is said
# aloud, so that it can be mended. More than 15 are no chance: then the change, or the machine, is broken.
set -uo pipefail
export PYTHONDONTWRITEBYTECODE=  # hundreds of tests start a Python: modules are compiled once, not by each
python=$1
shift
cache=$(mktemp -d)  # holds what failed in this run, and nothing of earlier ones
trap 'rm -rf "$cache"' EXIT

"$python" -m pytest -o cache_dir="$cache" "$@"
status=$?
[ "$status" = 1 ] || exit "$status"  # 1: tests failed; all else (passed, interrupted, wrong arguments) is final

failed=$cache/v/cache/lastfailed
[ -s "$failed" ] || exit 1
names() { "$python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$failed"; }
number=$(names | wc -l)
if [ "$number" -gt 15 ]; then
  echo "$number tests failed: too many to run them again alone"
  exit 1
fi
beside=$(names)
printf '\n%s tests failed beside others, run again alone:\n%s\n\n' "$number" "$beside"
"$python" -m pytest -o cache_dir="$cache" "$@" --last-failed -n 0
status=$?
[ "$status" != 0 ] || printf '\nFailed beside others, passed alone (worth mending):\n%s\n' "$beside"
exit "$status"
