#!/bin/bash
# Runs a training command again until it succeeds or fails for a reason that a restart does not remove:
#
#   launch/restart.sh caption-jax train --config=coco --workdir=gs://BUCKET/coco
#
# A restart follows status 75 (stopped and saved), 69 (another process was lost), 124 (hung) and 128 or more (killed),
# MAX_RESTARTS times (50). SIGTERM, SIGINT and SIGHUP are passed on to the command, and end this script with its status.
set -u

max_restarts=${MAX_RESTARTS:-50}
pause=${RESTART_SECONDS:-10}
stopping=
child=

stop() {
  stopping=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT HUP

for ((restart = 0; ; restart++)); do
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal has interrupted `wait`
    wait "$child"
    status=$?
  done
  if [ -n "$stopping" ] || ! ((status == 69 || status == 75 || status == 124 || status > 128)); then
    exit "$status"
  fi
  if ((restart == max_restarts)); then
    echo "status $status, after $max_restarts restarts" >&2
    exit "$status"
  fi
  echo "status $status: starting again in $pause s" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  [ -z "$stopping" ] || exit "$status"
done
