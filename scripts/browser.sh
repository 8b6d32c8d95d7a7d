#!/usr/bin/env bash
# What the tests of report.html need beside Python: Debian's Chromium, and axe-core from the npm registry in a cache folder.
#   scripts/browser.sh [PYTHON]     then: PYTHON -m pytest -m browser
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
cache=.browser
if ! command -v chromium >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
fi
"$python" -c "import playwright" 2>/dev/null || "$python" -m pip install -q -c constraints.txt playwright
if [ ! -f "$cache/node_modules/axe-core/axe.min.js" ]; then
  command -v npm >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm
  npm install --silent --no-audit --no-fund --prefix "$cache" axe-core@4.14.1
fi
echo "browser: $(chromium --version 2>/dev/null), axe-core $(node -p "require('./$cache/node_modules/axe-core/package.json').version")"
