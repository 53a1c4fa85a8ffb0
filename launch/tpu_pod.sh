#!/usr/bin/env bash
# A Cloud TPU slice, all of its hosts, through gcloud.
#
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE create --type=v5litepod-256 [OPTION ...]
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE setup [--mount=HOST:/SHARE]
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE run --config=... --workdir=/share/...
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE stop
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE delete
#
# create: other options go to gcloud (--spot, --version=...). setup copies this checkout to every
# host, installs it, and mounts the NFS share at /share. run starts the same command on every host.
# stop sends SIGTERM to it on the first: all save and end with 75; the same `run` resumes. Where the
# slice itself was taken away (state PREEMPTED): delete, create, setup and the same run.
# --dry-run prints the commands instead.
set -euo pipefail
dry= name= zone=
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    *) break ;;
  esac
  shift
done
if [ -z "$name" ] || [ -z "$zone" ] || [ $# -eq 0 ]; then
  echo "error: needs --name, --zone and one of create, setup, run, stop, delete" >&2
  exit 2
fi
verb=$1
shift
tpu=(gcloud compute tpus tpu-vm)

perform() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on() { # WORKERS COMMAND
  perform "${tpu[@]}" ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

case "$verb" in
  create)
    options=()
    for word in "$@"; do
      case "$word" in
        --type=*) options+=("--accelerator-type=${word#*=}") ;;
        *) options+=("$word") ;;
      esac
    done
    case " ${options[*]-} " in
      *" --version="*) ;;
      *) options+=(--version=v2-alpha-tpuv5-lite) ;;
    esac
    perform "${tpu[@]}" create "$name" --zone="$zone" "${options[@]}"
    ;;
  setup)
    share=
    for word in "$@"; do
      case "$word" in
        --mount=*) share=${word#*=} ;;
        *) echo "error: setup: unknown option $word" >&2 && exit 2 ;;
      esac
    done
    here=$(cd "$(dirname "$0")/.." && pwd)
    perform "${tpu[@]}" scp --recurse "$here" "$name:jvae" --zone="$zone" --worker=all
    on all "python3 -m venv venv && venv/bin/pip install --quiet 'jax[tpu]' ./jvae"
    if [ -n "$share" ]; then
      on all "sudo mkdir -p /share && sudo mount -t nfs $(printf %q "$share") /share"
    fi
    ;;
  run)
    on all "$(printf '%q ' venv/bin/python -m jvae.main "$@")"
    ;;
  stop)
    # The bracket keeps the pattern from matching the shell that holds it.
    on 0 "pkill -TERM -f '[j]vae.main'"
    ;;
  delete)
    perform "${tpu[@]}" delete "$name" --zone="$zone" --quiet
    ;;
  *)
    echo "error: unknown $verb; one of create, setup, run, stop, delete" >&2
    exit 2
    ;;
esac
