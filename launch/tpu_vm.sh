#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one VM or many, with spot capacity too. From the repository's root:
#
#   export ZONE=us-east5-b TYPE=v6e-8 BUCKET=gs://my-bucket/runs
#   launch/tpu_vm.sh create --spot     # queues a request and waits; after a preemption, again
#   launch/tpu_vm.sh setup             # copies this tree there, installs it, brings the data
#   launch/tpu_vm.sh run --config=configs/imagenet.py --workdir=runs/imagenet
#   launch/tpu_vm.sh logs              # follows the job; Ctrl-C leaves it running
#   launch/tpu_vm.sh stop              # saves and ends; `run`, as before, goes on
#   launch/tpu_vm.sh delete
#
# What follows `create` and `delete` goes to gcloud (--spot, --reserved, --valid-until-duration=6h,
# --network=N --subnetwork=N, --internal-ips); what follows `run` to `python -m alexnet_jax.main`.
# Each verb may be repeated. After a preemption `create`, `setup` and `run` bring the run back.
#
#   ZONE       zone with the quota; required
#   PROJECT    default: gcloud's own
#   TPU        name of the queued resource and its node; default alexnet
#   TYPE       accelerator type; default v6e-8. Above 8 it is a pod slice of several VMs
#   RUNTIME    software version; default by TYPE
#   DISK       disk in ZONE whose file system has the label alexnet, seen as /mnt/alexnet: read-only
#              in a pod slice, else writable
#   DATA       gs://... copied to /mnt/alexnet of every VM by `setup`, where there is no DISK
#   BUCKET     gs://... that keeps copies of workdirs, every SYNC seconds (300) and at the end
#   TRIES      starts without progress before a VM gives up; default 10
#   SSH_FLAGS  such as --tunnel-through-iap, where the VMs have no address outside
#   POLL       seconds between looks at the queue; default 30
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

usage='launch/tpu_vm.sh create|setup|run|logs|stop|delete'
verb=${1-}
[[ $verb =~ ^(create|setup|run|logs|stop|delete)$ ]] || fail "verb '$verb': use $usage"
shift
[[ -n ${ZONE-} ]] || fail 'ZONE is not set: export the zone that has your TPU quota, ZONE=us-east5-b'
command -v gcloud > /dev/null || fail 'gcloud is not installed: see https://cloud.google.com/sdk'
TPU=${TPU:-alexnet}
TYPE=${TYPE:-v6e-8}
PROJECT=${PROJECT:-$(gcloud config get-value project 2> /dev/null)}
[[ -n $PROJECT ]] || fail 'PROJECT is not set, nor has gcloud one: gcloud config set project NAME'
[[ $TYPE =~ -([0-9]+)$ ]] || fail "TYPE=$TYPE: use an accelerator type such as v6e-8, v5litepod-16, v4-32"
chips=${BASH_REMATCH[1]}
for name in DATA BUCKET; do
  [[ -z ${!name-} || ${!name} == gs://* ]] || fail "$name=${!name}: must be a place like gs://bucket/folder"
done
where=(--zone="$ZONE" --project="$PROJECT")
read -ra ssh_flags <<< "${SSH_FLAGS-}"

on() { # WORKER COMMAND: in the home folder of one VM or all
  gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" "${ssh_flags[@]}" --worker="$1" --command="$2"
}

environment() { # the variables that a VM's part reads
  local name
  for name in DATA BUCKET DISK SYNC TRIES; do
    [[ -z ${!name-} ]] || printf '%s=%q ' "$name" "${!name}"
  done
  (( chips <= 8 )) || printf 'POD=1 '
}

state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}"  # warnings may come before
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    return 1
  fi
}

request() {
  case $TYPE in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    *) [[ -n ${RUNTIME-} ]] || fail "TYPE=$TYPE: set RUNTIME too, its software version" ;;
  esac
  local flags=(--node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="${RUNTIME:-$runtime}")
  if [[ -n ${DISK-} ]]; then
    local mode=read-write
    (( chips <= 8 )) || mode=read-only
    flags+=(--data-disk="source=projects/$PROJECT/zones/$ZONE/disks/$DISK,mode=$mode")
  fi
  gcloud compute tpus queued-resources create "$TPU" "${where[@]}" "${flags[@]}" --async "$@"
}

create() {
  local now
  now=$(state)
  if [[ $now == SUSPENDED || $now == FAILED ]]; then
    echo "$TPU is $now, as after a preemption: asking for it anew"
    gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet
    now=NONE
  fi
  [[ $now != NONE ]] || request "$@"
  local shown=
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      SUSPEND* | FAILED | DELETING | NONE) fail "$TPU is $now: launch/tpu_vm.sh create asks again" ;;
    esac
    [[ $now == "$shown" ]] || echo "$TPU is $now; Ctrl-C leaves it in the queue, create waits again"
    shown=$now
    sleep "${POLL:-30}"
  done
  [[ $now == ACTIVE ]] # else describe failed, and has said why
  echo "$TPU is ACTIVE"
}

setup() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  archive=$(mktemp -d)
  trap 'rm -rf "$archive"' EXIT
  tar -czf "$archive/alexnet_jax.tar.gz" --exclude=__pycache__ \
    alexnet_jax configs launch setup.cfg pyproject.toml README.md LICENSE
  gcloud compute tpus tpu-vm scp "$archive/alexnet_jax.tar.gz" "$TPU:" "${where[@]}" \
    "${ssh_flags[@]}" --worker=all
  on all "mkdir -p alexnet_jax && tar -xzf alexnet_jax.tar.gz -C alexnet_jax && $(environment)alexnet_jax/launch/tpu_worker.sh setup"
}

run() {
  local word workdir=
  for word in "$@"; do
    case $word in
      --workdir=*://* | --config.data.store=*://* | --config.data.dir=*://*)
        fail "$word: must be on a disk of the VM; DATA is copied there by setup, workdirs to BUCKET" ;;
      --workdir=?*) workdir=${word#--workdir=} ;;
    esac
  done
  [[ -n $workdir ]] || fail 'run needs --workdir=FOLDER, such as runs/imagenet'
  [[ -n ${BUCKET-} || $workdir == /mnt/* ]] \
    || echo "warning: without BUCKET a preemption or delete loses $workdir" >&2
  on all "$(environment)alexnet_jax/launch/tpu_worker.sh start $(printf '%q ' "$@")"
}

case $verb in
  create) create "$@" ;;
  setup) setup ;;
  run) run "$@" ;;
  logs) on 0 'tail -n 50 -F alexnet_jax/job.log' ;;
  stop) on all 'alexnet_jax/launch/tpu_worker.sh stop' ;;
  # gcloud asks first, unless it is given --quiet.
  delete) gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force "$@" ;;
esac
