#!/usr/bin/env bash
# What compares by a tolerance, as other processors would compute it. On the oldest kernels and with other roundings: all
# but whole runs of every pair, which `make test` makes on the processor's own kernels. On each kind of kernels that this
# processor has, with one and with two threads: what is most sensitive to them.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE

SELECTED=(-q -m "numeric and not matrix")

sensitive() { # KERNELS THREADS
    # Sums over caches, adapters and quantised groups: there processors were seen to differ.
    ATEN_CPU_CAPABILITY=$1 OMP_NUM_THREADS=$2 pytest "${SELECTED[@]}" \
        -k "composition or (with_a_cache and (qaLora or flan_t5))" \
        tests/unit/test_composition.py tests/smoke/test_own_layers.py tests/smoke/test_encoder_decoders.py
}

both() { # KERNELS
    echo "=== $1 kernels, one thread and, beside it, two"
    sensitive "$1" 1 &
    local one=$!
    sensitive "$1" 2
    wait "$one"
}

echo "=== default kernels, other roundings, two threads"
mapfile -t ALL < <(grep -l "^from tolerance import" tests/unit/test_*.py tests/smoke/test_*.py | grep -v train_pairs)
ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 \
    pytest "${SELECTED[@]}" -p other_roundings -k "not checkpointing" --numprocesses 2 --dist loadfile "${ALL[@]}"
both default
for kernels in avx2:avx2 avx512:avx512vl; do
    if grep -qw "${kernels#*:}" /proc/cpuinfo; then
        both "${kernels%:*}"
    else
        echo "=== NOT RUN: ${kernels%:*} kernels, which this processor does not have"
    fi
done
