#!/usr/bin/env bash
# This machine: one process with every device it sees, or several processes on the CPU.
#
#   launch/local.sh [--dry-run] [--processes=N] [--devices=M] --config=optimus:tiny [...]
#
# With --processes=N, N processes of M virtual CPU devices each (default 1) train together; SIGTERM
# and SIGINT are passed on to all. Ends with 75 if the run was stopped by a signal (call it again), else
# with the first code that is not 0. --dry-run prints the commands instead.
set -euo pipefail
dry= processes=1 devices=1
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    *) break ;;
  esac
  shift
done
python=${PYTHON:-python3}

if [ "$processes" -eq 1 ] && [ "$devices" -eq 1 ]; then
  command=("$python" -m jvae.main "$@")
  if [ -z "$dry" ]; then exec "${command[@]}"; fi
  printf '%q ' "${command[@]}"
  echo
  exit
fi

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
port=${PORT:-$((20000 + $$ % 20000))}
pids=()
for ((i = 0; i < processes; i++)); do
  command=("$python" -m jvae.main "$@")
  if [ "$processes" -gt 1 ]; then
    command+=("--coordinator=localhost:$port" "--processes=$processes" "--process=$i")
  fi
  if [ -n "$dry" ]; then
    printf 'JAX_PLATFORMS=%q XLA_FLAGS=%q ' "$JAX_PLATFORMS" "$XLA_FLAGS"
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done
[ -z "$dry" ] || exit 0
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
code=0
for pid in "${pids[@]}"; do
  one=0
  wait "$pid" || one=$?
  # A signal to this script ends `wait` early: the process is still to come.
  while kill -0 "$pid" 2>/dev/null; do one=0; wait "$pid" || one=$?; done
  if [ "$code" -eq 0 ]; then code=$one; fi
done
exit "$code"
