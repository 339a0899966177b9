#!/usr/bin/env bash
# Renew requirements.lock: the newest versions that pyproject.toml allows, as a fresh environment resolves them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python3 -m venv "$fresh"
"$fresh/bin/pip" install --quiet ".[dev]" editables
{
  echo "# Every version that the tests ran with; scripts/setup.sh installs from it, scripts/lock.sh renews it."
  "$fresh/bin/pip" freeze --exclude scaledl | sed 's/+cpu$//; s/+cu[0-9]*$//'
} >requirements.lock
