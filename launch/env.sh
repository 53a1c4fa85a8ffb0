#!/usr/bin/env bash
# Python in this checkout's own environment, .venv, which is made at the first call and again when
# setup.py or .ci/constraints.txt have changed.
#
#   launch/env.sh -m jvae.main --config=configs/optimus.py
#
# It needs Python 3.11 or newer with venv; PYTHON=... names another than python3.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
env=$top/.venv
inputs=$(cat "$top/setup.py" "$top/.ci/constraints.txt" | cksum)

if [ "$(cat "$env/made-of" 2>/dev/null)" != "$inputs" ]; then
  echo "making $env, which takes a few minutes" >&2
  "${PYTHON:-python3}" -m venv "$env"
  "$env/bin/pip" install --quiet -c "$top/.ci/constraints.txt" -e "$top[test]"
  echo "$inputs" > "$env/made-of"
fi
exec "$env/bin/python" "$@"
