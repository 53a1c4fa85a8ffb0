#!/usr/bin/env bash
# One process on this machine, with every device it sees.
#
#   launch/local.sh [--dry-run] --config=optimus:tiny [--config.KEY=VALUE ...]
#
# --dry-run prints the command instead of running it.
set -euo pipefail
dry=
if [ "${1:-}" = "--dry-run" ]; then
  dry=1
  shift
fi
command=("${PYTHON:-python3}" -m jvae.main "$@")
if [ -n "$dry" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
