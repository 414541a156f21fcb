#!/bin/bash
# Trains on several machines that share a folder, by ssh from any of them, with one process per machine:
#
#   launch/workstations.sh host-a,host-b caption-jax train --config=coco --workdir=/shared/runs/coco
#
# Each machine needs the same environment and code at the same path; the command runs in the current folder. PORT (8476)
# must be free on the first machine and open between them. Ctrl-C stops all processes, which save. Exits with the highest
# status.
set -u

IFS=, read -r -a hosts <<<"$1"
shift
command=$(printf '%q ' "$@")
folder=$(printf '%q' "$PWD")
pids=()

for index in "${!hosts[@]}"; do
  variables="JAX_COORDINATOR_ADDRESS=${hosts[0]}:${PORT:-8476} JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$index"
  # With a terminal (-tt), the end of ssh is a SIGHUP for the command, which then saves.
  # shellcheck disable=SC2029 # the variables are those of this script
  ${SSH:-ssh -tt} "${hosts[index]}" "cd $folder && env $variables $command" </dev/null &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT HUP

highest=0
for pid in "${pids[@]}"; do
  wait "$pid"
  status=$?
  while kill -0 "$pid" 2>/dev/null; do # a signal has interrupted `wait`
    wait "$pid"
    status=$?
  done
  ((status > highest)) && highest=$status
done
exit "$highest"
