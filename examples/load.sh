#!/bin/sh
# Copy models and data that examples/assets.py made into the cluster's volumes, where the examples look for them.
#
#   examples/load.sh ASSETS [KUBECTL OPTION...]      ASSETS: the folder given to examples/assets.py
#
# For instance  examples/load.sh assets --namespace team-a
# Environment: KUBECTL (the command), IMAGE (of the loader pod: any image with python and sleep that the nodes can pull).
set -eu

if [ $# -lt 1 ] || [ ! -d "$1/data" ] || [ ! -d "$1/models" ]; then
    echo "usage: $0 ASSETS [KUBECTL OPTION...]   (ASSETS holds data/ and models/: make it with examples/assets.py ASSETS)" >&2
    exit 64
fi
assets=$1
shift
here=$(dirname "$0")

kubectl() { command "${KUBECTL:-kubectl}" "$@"; }
remove_pod() { kubectl "$@" delete pod finetune-loader --ignore-not-found --now --wait=true >/dev/null; }

copy() { # FOLDER VOLUME [KUBECTL OPTION...]
    folder=$1 volume=$2
    shift 2
    echo "load: $(du -sh "$folder" | cut -f1) from $folder into the volume $volume" >&2
    # Python's own tar reader: an image need not have tar. What is there already is replaced. Should it fail, the rest of
    # the input is still read: containerd 1.6 never ends an exec whose input nobody takes.
    tar --create --file - --directory "$folder" . | kubectl "$@" exec --stdin finetune-loader -- python -c "
import sys, tarfile
safely = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}
try:
    tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall('/volumes/$volume', **safely)
finally:
    while sys.stdin.buffer.read(1 << 20):
        pass"
}

remove_pod "$@"
trap 'remove_pod "$@"' EXIT
sed "s|image: python:3.11-slim|image: ${IMAGE:-python:3.11-slim}|" "$here/volumes.yaml" | kubectl "$@" apply -f - >&2
if ! kubectl "$@" wait pod/finetune-loader --for=condition=Ready --timeout=180s >/dev/null; then
    echo "load: the pod finetune-loader did not start (an image that cannot be pulled? IMAGE=… names another); its events:" >&2
    kubectl "$@" describe pod finetune-loader | sed -n '/^Events:/,$p' >&2
    exit 1
fi
copy "$assets/data" datasets "$@"
copy "$assets/models" models "$@"
