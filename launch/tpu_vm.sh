#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one VM or many: see launch/README.md. Has never run on a TPU.
#
# DRY_RUN=1 prints the calls of gcloud and makes none. Variables beside ZONE:
#   TPU        name; default alexnet
#   TYPE       accelerator type; default v6e-8. Above 8 it is a pod slice of several VMs
#   RUNTIME    software version; default v2-alpha-tpuv6e. v5p wants v2-alpha-tpuv5, v5litepod
#              v2-alpha-tpuv5-lite, older ones tpu-ubuntu2204-base
#   DISK       projects/P/zones/Z/disks/D with a file system labeled alexnet, for /mnt/alexnet
#   DATA       gs://... that `setup` copies to /mnt/alexnet of every VM, without DISK
#   BUCKET     gs://... that gets a copy of the workdir every five minutes and at the end
#   SSH_FLAGS  such as --tunnel-through-iap
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }
call() { if [[ -n ${DRY_RUN-} ]]; then echo "gcloud$(printf ' %q' "$@")"; else gcloud "$@"; fi; }
queued() { call compute tpus queued-resources "$1" "$TPU" --zone="$ZONE" "${@:2}"; }
# shellcheck disable=SC2086  # SSH_FLAGS is a list
vm() { call compute tpus tpu-vm "$@" --zone="$ZONE" ${SSH_FLAGS-}; }
on_vms() { # a function below, on all
  local settings="DISK=${DISK-} DATA=${DATA-} BUCKET=${BUCKET-} POD=$pod"
  vm ssh "$TPU" --worker=all --command="$settings alexnet_jax/launch/tpu_vm.sh$(printf ' %q' "$@")"
}

setup() {
  local archive
  archive=$(mktemp)
  tar -czf "$archive" --exclude=__pycache__ \
    alexnet_jax configs launch setup.cfg setup.py pyproject.toml README.md LICENSE
  vm scp "$archive" "$TPU:alexnet_jax.tar.gz" --worker=all
  rm "$archive"
  vm ssh "$TPU" --worker=all \
    --command='mkdir -p alexnet_jax && tar -xzf alexnet_jax.tar.gz -C alexnet_jax'
  on_vms vm_setup
}

vm_setup() { # may be repeated
  sudo mkdir -p /mnt/alexnet
  if [[ -n $DISK ]] && ! mountpoint -q /mnt/alexnet; then # read-only, it cannot replay its journal
    sudo mount -o "noatime${POD:+,ro,noload}" /dev/disk/by-label/alexnet /mnt/alexnet
  fi
  [[ -n $DISK && -n $POD ]] || sudo chown "$(id -u)" /mnt/alexnet
  [[ -n $DISK || -z $DATA ]] || gcloud storage rsync --recursive "$DATA" /mnt/alexnet
  python3 -m pip install --quiet --user uv # the system's Python is too old
  python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
}

vm_start() {
  flock -n job.lock true || fail 'a job runs here: stop it first'
  nohup launch/tpu_vm.sh vm_run "$@" >> job.log 2>&1 < /dev/null &
}

vm_run() {
  local word workdir copy job number
  exec 9> job.lock && flock -n 9
  for word in "$@"; do [[ $word != --workdir=* ]] || workdir=${word#*=}; done
  copy=$BUCKET/$(basename "$workdir")
  number=$(curl -sSf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  [[ $number == 0 ]] || BUCKET='' # process 0 alone reads and writes the workdir
  if [[ -n $BUCKET && ! -e $workdir/config.json ]]; then # on a new VM
    if gcloud storage ls "$copy/config.json" 2> ls.txt; then
      mkdir -p "$workdir.part"
      gcloud storage rsync --recursive "$copy" "$workdir.part"
      mv -T "$workdir.part" "$workdir"
    else # what could not be looked at shall not be overwritten
      cat ls.txt && grep -q 'matched no objects' ls.txt
    fi
  fi
  TFDS_DATA_DIR=/mnt/alexnet .venv/bin/python launch/local.py -n 1 --tries=10 -- "$@" &
  job=$!
  echo "$job" > job.pid
  trap : TERM # of a spot VM that is taken back, which local.py hears too
  while kill -0 "$job" 2> /dev/null; do
    timeout 300 tail --pid="$job" -f /dev/null || true
    [[ -z $BUCKET || ! -e $workdir/config.json ]] || gcloud storage rsync --recursive \
      --delete-unmatched-destination-objects --exclude='(.*/)?\..*' "$workdir" "$copy" || true
  done
  wait "$job" && echo 'the job is done' || echo "the job ended with exit code $?"
}

vm_stop() {
  if flock -n job.lock echo 'no job runs here'; then return; fi
  kill -TERM "$(< job.pid)"
  flock job.lock tail -n 1 job.log
}

verb=${1-}
shift || true
TPU=${TPU:-alexnet} TYPE=${TYPE:-v6e-8} pod='' mode=read-write
[[ $verb == vm_* || -n ${ZONE-} ]] || fail 'ZONE is not set: export the zone of your TPU quota'
[[ $TYPE =~ -([0-9]+)$ ]] || fail "TYPE=$TYPE: use a type such as v6e-8 or v5litepod-16"
(( BASH_REMATCH[1] <= 8 )) || pod=1 mode=read-only
case $verb in
  create)
    [[ -z ${DISK-} ]] || set -- --data-disk="source=$DISK,mode=$mode" "$@"
    queued create --node-id="$TPU" --accelerator-type="$TYPE" \
      --runtime-version="${RUNTIME:-v2-alpha-tpuv6e}" --async "$@"
    ;;
  state) queued describe --format='value(state.state)' ;;
  setup) setup ;;
  run)
    [[ " $*" == *' --workdir='?* ]] || fail 'run needs --workdir=FOLDER, such as runs/imagenet'
    on_vms vm_start "$@"
    ;;
  logs) vm ssh "$TPU" --worker=0 --command='tail -n 50 -F alexnet_jax/job.log' ;;
  stop) on_vms vm_stop ;;
  delete) queued delete --force "$@" ;; # gcloud asks first, unless it is given --quiet
  vm_*) "$verb" "$@" ;;
  *) fail "verb '$verb': use create, state, setup, run, logs, stop or delete" ;;
esac
