#!/usr/bin/env bash
# A GPU cluster under Slurm: one process per GPU, put back into the queue when it is preempted or
# out of time.
#
#   launch/slurm.sh [--dry-run] --nodes=2 --gpus=8 [SBATCH OPTION ...] -- --config=... --workdir=...
#
# --gpus is per node; every other option before -- goes to sbatch. Submit from the folder that the
# run is to start in; --workdir must be on a file system that all nodes share. Two minutes before
# the end (or at once, when preempted) every process gets SIGTERM, saves and ends with 75; the job
# then goes back into the queue and the same command resumes. --dry-run prints both commands.
set -euo pipefail
python=${PYTHON:-python3}

if [ -n "${JVAE_IN_SLURM:-}" ]; then # on the first node of the job
  trap '' TERM                       # the steps get it; this script waits for them
  code=0
  srun --kill-on-bad-exit=0 "$python" -m jvae.main "$@" || code=$?
  if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
  exit "$code"
fi

dry= nodes=1 gpus=1 options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [ $# -lt 2 ]; then
  echo "error: no flags of jvae.main; put them after --" >&2
  exit 2
fi
shift
submit=(sbatch --requeue --open-mode=append --signal=TERM@120 --export=ALL,JVAE_IN_SLURM=1
  --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus"
  ${options[@]+"${options[@]}"} "$0" "$@")
if [ -z "$dry" ]; then exec "${submit[@]}"; fi
printf '%q ' "${submit[@]}"
echo
printf '%q ' srun --kill-on-bad-exit=0 "$python" -m jvae.main "$@"
echo
