#!/usr/bin/env bash
# What tpu_vm.sh does on each VM, in the folder it copied there: setup | start ARGS | stop.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${MOUNT:-/mnt/alexnet}

setup() {
  if ! mountpoint -q "$data" && [[ -n ${DISK-}${DATA-} ]]; then
    sudo mkdir -p "$data"
    if [[ -n ${DISK-} ]]; then
      # A read-only disk cannot replay its journal.
      sudo mount -o "${POD:+ro,noload,}noatime" /dev/disk/by-label/alexnet "$data"
    fi
    [[ -n ${DISK-} && -n ${POD-} ]] || sudo chown "$(id -u)" "$data"
  fi
  if [[ -n ${DATA-} && -z ${DISK-} ]]; then
    gcloud storage rsync --recursive "$DATA" "$data"
  fi
  # The system's python is 3.10, too old.
  export PATH=$PATH:$HOME/.local/bin
  command -v uv > /dev/null || python3 -m pip install --quiet --user uv
  [[ -x .venv/bin/python ]] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
}

# The lock is held by the job's processes, too, so that none is left when it is free.
free() { flock --nonblock .job.lock true; }

start() {
  free || { echo 'error: a job runs here: stop it first' >&2; exit 2; }
  [[ ! -d $data ]] || export TFDS_DATA_DIR=$data
  setsid nohup launch/tpu_worker.sh run "$@" >> job.log 2>&1 < /dev/null &
  echo "started; launch/tpu_vm.sh logs shows it"
}

copies() { echo "$BUCKET/$(basename "$workdir")"; }

push() { # process 0 writes, on VM 0; what is hidden is unfinished
  if [[ -n ${BUCKET-} && $number == 0 && -f $workdir/config.json ]]; then
    gcloud storage rsync --recursive --delete-unmatched-destination-objects \
      --exclude='(.*/)?\..*' "$workdir" "$(copies)"
  fi
}

restore() { # a VM that was made anew
  if [[ -n ${BUCKET-} && ! -e $workdir/config.json ]] \
    && gcloud storage ls "$(copies)/config.json" > /dev/null 2>&1; then
    mkdir -p "$workdir"
    gcloud storage rsync --recursive "$(copies)" "$workdir"
  fi
}

run() {
  exec 9> .job.lock
  flock --nonblock 9 || { echo 'error: a job runs here: stop it first' >&2; exit 2; }
  echo $$ > .job.pid
  local word code=0 job pusher
  for word in "$@"; do
    case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
  done
  number=${TPU_WORKER_ID-$(curl --silent --show-error --fail --header 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)}
  restore
  .venv/bin/python launch/local.py -n 1 --tries="${TRIES:-10}" -- "$@" &
  job=$!
  trap 'kill -TERM "$job"' TERM INT  # `stop`, and the end of a spot VM
  { while sleep "${SYNC:-300}"; do push || true; done; } 9>&- &
  pusher=$!
  while kill -0 "$job" 2> /dev/null; do
    wait "$job" && code=0 || code=$?  # a signal ends the wait before the job
  done
  kill "$pusher"
  push
  echo "+ the job ended with exit code $code"
  exit "$code"
}

stop() {
  if free; then
    echo 'no job runs here'
  else
    kill -TERM "$(< .job.pid)"
    flock --timeout 600 .job.lock true || { echo 'error: the job does not end' >&2; exit 1; }
    tail -n 1 job.log
  fi
}

verb=$1
shift
"$verb" "$@"
