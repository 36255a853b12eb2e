#!/bin/bash
# Measure what the operator is held to, and print the tables and a summary for docs/benchmarks.md: two hours on two quiet
# cores, one of them the idle hour. JOBS, ROUNDS, LIVE, ARRIVAL_SECONDS and MINUTES make it shorter; nothing leaves the loopback.
set -eu
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}

measure() { # name, script, flags
    name=$1
    shift
    printf '\n## %s\n\n`%s`\n\n' "$name" "$*"
    .venv/bin/python "benchmarks/$@" >"$out/$name.md" 2>"$out/$name.log" || { cat "$out/$name.log" && exit 1; }
    cat "$out/$name.md"
}

cell() { # name, first cell of the row (empty: the last row), number of the cell
    tr -d '*' <"$out/$1.md" | awk -F ' *[|] *' -v row="$2" -v n="$3" '
        /^[|]/ && (row == "" || $2 == row) { found = $(n + 1) } END { print found }'
}

measure burst operator_burst.py --jobs "${JOBS:-1000}" --rounds "${ROUNDS:-3}"
measure memory operator_memory.py --jobs "${LIVE:-5000}"
measure arrivals operator_latency.py --rate 10 --seconds "${ARRIVAL_SECONDS:-60}"
measure evictions operator_evictions.py
measure lines operator_lines.py
measure idle operator_idle.py --jobs "${JOBS:-1000}" --minutes "${MINUTES:-60}"

cat <<TABLE

## summary

| what | goal | measured | command |
|---|---|---|---|
| $(cell burst "" 1) jobs at once, until all first Jobs: operator ÷ bare client | 1.2 | $(cell burst "" 4) | \`operator_burst.py\` |
| memory with $(cell memory "" 1) live jobs, after a sweep | 400 MB | $(cell memory "" 4) | \`operator_memory.py\` |
| arrival to first Job at 10 a second, p99 | 1 s | $(cell arrivals operator 3) s | \`operator_latency.py\` |
| the same ÷ bare client's p99 | 3 | $(cell arrivals "operator ÷ bare" 3) | |
| idle, $(cell idle "" 1) live jobs, $(cell idle "" 2) minutes: lists beside the sweep; warnings; writes | 0; 0; 0 | $(cell idle "" 3); $(cell idle "" 4); $(cell idle "" 5) | \`operator_idle.py\` |
| eviction to the next pod, the longest of $(grep -c '^| [0-9]' "$out/evictions.md") in a row | 2 s | $(cell evictions longest 2) s, $(cell evictions longest 4) of a plain Job's | \`operator_evictions.py\` |
| lines of plan, status and manifests, now ÷ before | 1.25 | $(cell lines "plan, status, manifests" 4) ($(cell lines "plan, status, manifests" 3)); with the modules that took parts $(cell lines "all" 4) | \`operator_lines.py\` |
TABLE
