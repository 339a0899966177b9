#!/usr/bin/env bash
# Bring the environment into .venv, every version from requirements.lock. A second call does nothing.
#   scripts/setup.sh          what training needs
#   scripts/setup.sh dev      what the tests need too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-}
wanted="$(cat pyproject.toml requirements.lock | cksum)"
for stamp in ".venv/.setup-$extra" .venv/.setup-dev; do
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
done

python=
for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: Python 3.11 or newer is needed; name it as PYTHON=/path/to/python" >&2
  exit 1
fi

began=$SECONDS
echo "setup: installing into .venv from requirements.lock (one to five minutes, once)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT="$PWD/requirements.lock"
if ! .venv/bin/python -m pip install --quiet --editable ".${extra:+[$extra]}" >.venv/setup.log 2>&1; then
  tail -n 20 .venv/setup.log >&2
  echo "setup: failed; the whole log is .venv/setup.log" >&2
  exit 1
fi
echo "$wanted" >".venv/.setup-$extra"
echo "setup: done in $((SECONDS - began)) s"
