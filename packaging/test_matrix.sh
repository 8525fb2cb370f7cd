#!/usr/bin/env bash
# The wheel and its tests with the oldest and the newest torch and transformers: packaging/test_matrix.sh FOLDER [oldest] [newest]
# The oldest are the lower bounds in pyproject.toml, the newest what pip finds. PYTHON and TOOLS as in clean_install.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1; shift
[ $# -gt 0 ] || set -- oldest newest
for end in "$@"; do
  pins=()
  if [ "$end" = oldest ]; then
    mapfile -t pins < <(sed -nE 's/^    "(torch|transformers)>=([0-9.]+)".*/\1==\2.*/p' pyproject.toml)
  fi
  EXTRAS=dev,plot,eval,serve packaging/clean_install.sh "$work/$end" "${pins[@]}"
  # From the sources, whose tests read files beside the package; what they import is what was installed.
  (cd "$work/$end/source" && ../env/bin/python -c 'import sharedllm; assert "site-packages" in sharedllm.__file__' &&
    ../env/bin/python -m pytest tests --ignore=tests/browser -m "not processes" -n logical --maxprocesses 4 --dist worksteal)
done
