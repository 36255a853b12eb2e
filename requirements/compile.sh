#!/bin/sh
# Resolve requirements/*.in into hash-pinned requirements/*.txt: one set of versions, so the files agree.
# Resolved for the oldest Python that we support (3.11) on 64-bit Linux; the hashes are those of every file of a release,
# so that 3.12, 3.13 and arm64 install from the same list. New versions: add --upgrade.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-uv}

compile() { # NAME [OPTION...]
    name=$1
    shift
    "$uv" pip compile --quiet "requirements/$name.in" --output-file "requirements/$name.txt" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --annotation-style line "$@"
}

compile bootstrap "${@}"
compile dev "${@}"
compile operator --constraints requirements/dev.txt
compile trainer --constraints requirements/dev.txt
