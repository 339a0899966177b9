#!/usr/bin/env bash
# Set up, then train a small GPT from scratch on real text and let it write. Arguments go to the training command.
#   scripts/quickstart.sh                              the documentation that every Python installation brings
#   scripts/quickstart.sh data.path=my_book.txt        your own text
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
exec .venv/bin/scaledl train experiment=llm/quickstart "$@"
