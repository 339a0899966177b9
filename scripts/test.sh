#!/usr/bin/env bash
# Set up, then lint, types and tests. Arguments go to pytest: scripts/test.sh -m 'not e2e'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes with one thread each are faster here than one with two: most tests wait for imports.
OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses 2 --dist loadfile "$@"
