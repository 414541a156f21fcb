#!/bin/bash
# Keeps a run on a queued TPU slice until it is complete. If the slice is preempted, it is deleted and requested again.
# Run this on a machine that stays up, with gcloud configured:
#
#   ZONE=us-west4-a TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite CODE=gs://BUCKET/code.tar.gz DATA=BUCKET \
#     launch/queued_resource.sh NAME --spot -- train --config=coco --workdir=gs://BUCKET/coco
#
# Arguments before `--` are those of `gcloud compute tpus queued-resources create`. When training ends, the slice is
# deleted, and this script ends with the status of training, which the VMs write to launch_status in the workdir.
set -u

name=$1
shift
options=()
while [ "$1" != -- ]; do
  options+=("$1")
  shift
done
shift
workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
[ -n "$workdir" ] || { echo "error: set --workdir=gs://BUCKET/RUN" >&2; exit 2; }
here=$(dirname "$0")

queued() {
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$name" --zone="$ZONE" --quiet "$@"
}

gcloud storage rm "$workdir/launch_status" 2>/dev/null # of an earlier attempt
while true; do
  if status=$(gcloud storage cat "$workdir/launch_status" 2>/dev/null); then
    echo "training ended with status $status: deleting $name"
    queued delete --force
    exit "$status"
  fi
  state=$(queued describe --format='value(state.state)' 2>/dev/null)
  case $state in
    SUSPENDED | FAILED)
      echo "$name is $state: requesting it again"
      queued delete --force
      ;;
    '')
      queued create --node-id="$name" --accelerator-type="$TYPE" --runtime-version="$VERSION" \
        --metadata="^;^code=$CODE;bucket=${DATA:-};command=$*;report=$workdir/launch_status" \
        --metadata-from-file=startup-script="$here/tpu_startup.sh" "${options[@]}" || exit
      ;;
  esac
  sleep "${POLL_SECONDS:-60}"
done
