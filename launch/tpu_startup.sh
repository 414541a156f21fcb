#!/bin/bash
# Startup script of the VMs of a TPU slice: installs the code, mounts the data and trains, also after a restart of the VM.
# Its settings are metadata of the VMs (docs/distributed.md):
#
#   code     archive of this repository in a bucket (git archive --format=tar.gz)
#   bucket   bucket that contains the data, mounted at /data; empty for none
#   command  arguments of caption-jax, separated by spaces
#   report   object to which the exit status is written, unless the VM is stopped
set -u

metadata() {
  curl -sf -H 'Metadata-Flavor: Google' "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

export HOME=/root
folder=${FOLDER:-/opt/caption-jax}
if ! code=$(metadata code) || ! command=$(metadata command) || ! report=$(metadata report); then
  echo "error: the metadata of this VM need code, command and report" >&2
  exit 1
fi
if [ ! -x "$folder/env/bin/caption-jax" ]; then
  mkdir -p "$folder/code" || exit 1
  gcloud storage cat "$code" | tar -xz -C "$folder/code" || exit 1
  python3 -m venv "$folder/env" || exit 1
  (cd "$folder/code" && "$folder/env/bin/pip" install -q -c constraints.txt '.[train,tpu,hub,gcs]') || exit 1
fi
bucket=$(metadata bucket)
if [ -n "$bucket" ] && ! mountpoint -q /data; then
  mkdir -p /data && gcsfuse --implicit-dirs -o ro "$bucket" /data || exit 1
fi
read -r -a arguments <<<"$command"
"$folder/code/launch/restart.sh" "$folder/env/bin/caption-jax" "${arguments[@]}"
echo $? | gcloud storage cp - "$report"
