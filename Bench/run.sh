#!/usr/bin/env bash
# Every row of the README's table, each beside its baseline of the same run: `make bench`.
#
# One shard on core 0, the load on core 1, both spinning. The rows and their baselines alternate
# ALTERNATIONS times; the table shows medians. Results go to Bench/Results/<date>-<commit>.md, the
# raw JSON of every run beside it in a folder that git ignores.
#
#   ALTERNATIONS=3  SECONDS_EACH=3  LONG_SECONDS=60  DIR=/path/on/the/disk  Bench/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

programs=.build/release
alternations=${ALTERNATIONS:-3}
seconds_each=${SECONDS_EACH:-3}
long_seconds=${LONG_SECONDS:-60}
dir=${DIR:-$(mktemp -d)}
port=${PORT:-7499}
commit=$(git rev-parse --short HEAD 2>/dev/null || echo none)
name="$(date -u +%Y-%m-%d)-$commit"
raw=Bench/Results/raw-$name
table=Bench/Results/$name.md
journal=512MiB
mkdir -p "$raw"

if [ "$(nproc)" -lt 2 ]; then
    echo "bench: two cores are needed, one for the shard and one for the load" >&2
    exit 1
fi
swift build -c release >/dev/null

broker=
stop() {
    if [ -n "$broker" ]; then
        kill -TERM "$broker" 2>/dev/null || true
        wait "$broker" 2>/dev/null || true
        broker=
    fi
}
trap 'stop; rm -rf "$dir/data"' EXIT

# start CPU: a fresh broker, spinning on that core.
start() {
    stop
    rm -rf "$dir/data"
    "$programs/brokerd" --data-dir "$dir/data" --listen "127.0.0.1:$port" --admin off \
        --idle spin --cpus "$1" --journal-size $journal 2>"$raw/brokerd.log" &
    broker=$!
    for _ in $(seq 300); do
        grep -q 'ready' "$raw/brokerd.log" && return
        sleep 0.1
    done
    echo "bench: the broker does not become ready; see $raw/brokerd.log" >&2
    exit 1
}

# load NAME CPU ARGUMENTS…: one run of brokerload against the broker.
load() {
    local file=$1 cpu=$2
    shift 2
    echo "  $file: $*" >&2
    "$programs/brokerload" "$@" --server "127.0.0.1:$port" --cpu "$cpu" --out "$raw/$file.json" \
        >/dev/null
}

# value FILE KEY: the first value of a key in one result.
value() { sed -n "s/^ *\"$2\": \([0-9.]*\),*$/\1/p" "$raw/$1.json" | head -n 1; }
# baseline RUN WORKLOAD KEY: a value of one workload of a list of results.
baseline() {
    awk -v want="\"workload\": \"$2\"" -v key="\"$3\":" '
        /"workload":/ { here = index($0, want) > 0 }
        here && index($0, key) { gsub(/[^0-9.]/, "", $2); print $2; exit }
    ' "$raw/baseline-$1.json"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# over FUNCTION…: the median over the alternations; RUN stands for the number of one.
over() {
    local run
    for run in $(seq "$alternations"); do
        # shellcheck disable=SC2294
        eval "${1//RUN/$run}"
    done | median
}
calc() { awk "BEGIN { printf \"$1\", $2 }"; }

short="--closed-loop --duration $seconds_each"
for run in $(seq "$alternations"); do
    echo "alternation $run of $alternations" >&2
    stop
    "$programs/brokerload" baseline --dir "$dir" --frame-sizes 138,331,1099 --connections 8 \
        --window 32 --server-cpu 0 --cpu 1 --duration "$seconds_each" \
        --out "$raw/baseline-$run.json" >/dev/null
    start 0
    # shellcheck disable=SC2086
    {
        load "confirm-$run" 1 publish $short --durability memory --size 64 --window 1
        load "deliver-$run" 1 e2e $short --durability memory --size 64 --window 1
        load "synced-$run" 1 publish $short --durability synced --size 1024 --window 1
        load "stream-$run" 1 publish $short --durability synced --size 256 --window 1000
        load "flow-$run" 1 e2e $short --durability memory --size 64 --window 1000
        load "one-$run" 1 publish $short --durability synced --size 256 --window 1000 --queues 1
        load "many-$run" 1 publish $short --durability synced --size 256 --window 1000 \
            --queues 1000
    }
    start 1
    # shellcheck disable=SC2086
    load "swapped-$run" 0 publish $short --durability synced --size 1024 --window 1
    start 0
    load "batches-$run" 1 publish --closed-loop --duration "$long_seconds" --durability synced \
        --size 256 --batch 32 --window 64
done

# Recovery: killed while it is written to at full speed, then started on what is left.
for run in $(seq "$alternations"); do
    start 0
    "$programs/brokerload" publish --server "127.0.0.1:$port" --cpu 1 --durability synced \
        --size 256 --batch 32 --window 64 --duration 10 >/dev/null 2>&1 &
    writer=$!
    sleep 5
    kill -KILL "$broker"
    wait "$broker" 2>/dev/null || true
    wait "$writer" 2>/dev/null || true
    began=$(date +%s%N)
    "$programs/brokerd" --data-dir "$dir/data" --listen "127.0.0.1:$port" --admin off \
        --idle spin --cpus 0 --journal-size $journal 2>"$raw/recovery-$run.log" &
    broker=$!
    until grep -q 'ready' "$raw/recovery-$run.log"; do sleep 0.01; done
    ended=$(date +%s%N)
    calc '%.3f\n' "($ended - $began) / 1e9" >"$raw/recovery-$run.seconds"
    stop
done

recovered() { cat "$raw/recovery-$1.seconds"; }
bytes_read() { grep -o 'journal_bytes_read=[0-9]*' "$raw/recovery-$1.log" | head -n 1 | cut -d= -f2; }
parts() { grep -o 'recovery_seconds=[0-9.]*' "$raw/recovery-$1.log" | head -n 1 | cut -d= -f2; }

echo138=$(over 'baseline RUN "echo 138 B, 1 × 1" p50')
echo138many=$(over 'baseline RUN "echo 138 B, 8 × 32" records_per_second')
echo1099=$(over 'baseline RUN "echo 1099 B, 1 × 1" p50')
append1k=$(over 'baseline RUN "append 1024 B, 1 in flight" p50')
append128k=$(over 'baseline RUN "append 131072 B, 2 in flight" bytes_per_second')
both=$(over 'baseline RUN "segments beside the other, segments by 256 KiB" bytes_per_second')
confirm=$(over 'value confirm-RUN p50')
deliver=$(over 'value deliver-RUN p50')
synced=$(over 'value synced-RUN p50')
synced99=$(over 'value synced-RUN p99')
swapped=$(over 'value swapped-RUN p50')
swapped99=$(over 'value swapped-RUN p99')
stream=$(over 'value stream-RUN bytes_per_second')
streamrate=$(over 'value stream-RUN records_per_second')
batches=$(over 'value batches-RUN bytes_per_second')
flow=$(over 'value flow-RUN records_per_second')
one=$(over 'value one-RUN records_per_second')
one50=$(over 'value one-RUN p50')
many=$(over 'value many-RUN records_per_second')
many50=$(over 'value many-RUN p50')
seconds=$(over 'recovered RUN')
inside=$(over 'parts RUN')
read=$(over 'bytes_read RUN')
samples() { value "$1-1" samples; }

{
    echo "Commit \`$commit\`, $(date -u +%Y-%m-%d). \`make bench\`: $alternations alternations of" \
        "$seconds_each s a row (batches: $long_seconds s), medians; shard on core 0, load on core 1," \
        "both spinning; closed loop. $(nproc) cores of $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)," \
        "Linux $(uname -r); $(grep -o 'disk="[^"]*"' "$raw/brokerd.log" | head -n 1)"
    echo
    echo '| what | bar | measured | beside it | samples |'
    echo '|---|---|---|---|---|'
    echo "| publish→confirm 64 B, \`memory\`, one in flight, p50 | ≤ 1.2 × | $(calc %.2f "$confirm/$echo138") × ($confirm µs) | C echo of 138 B: $echo138 µs | $(samples confirm) |"
    echo "| publish→delivery 64 B, \`memory\`, one in flight, p50 | ≤ 1.6 × | $(calc %.2f "$deliver/$echo138") × ($deliver µs) | the same | $(samples deliver) |"
    echo "| publish→confirm 1 KiB, \`synced\`, one in flight, p50 | ≤ 1.15 × | $(calc %.2f "$synced/($append1k+$echo1099)") × ($synced µs; p99 $(calc %.2f "$synced99/$synced") × p50) | raw append $append1k µs + echo $echo1099 µs | $(samples synced) |"
    echo "| the same, cores swapped | ≤ 1.15 × | $(calc %.2f "$swapped/($append1k+$echo1099)") × ($swapped µs; p99 $(calc %.2f "$swapped99/$swapped") × p50) | the same | $(samples swapped) |"
    echo "| 256 B, \`synced\`, 1000 in flight, one record a frame | ≥ 0.4 × | $(calc %.2f "$stream/$append128k") × ($(calc %.0f "$stream/1e6") MB/s, $(calc %.2f "$streamrate/1e6") M records/s) | raw 128 KiB appends, two in flight: $(calc %.0f "$append128k/1e6") MB/s | $(samples stream) |"
    echo "| 256 B, \`synced\`, batches of 32, $long_seconds s | ≥ 0.7 × | $(calc %.2f "$batches/$both") × ($(calc %.0f "$batches/1e6") MB/s) | raw journal and segment streams together: $(calc %.0f "$both/1e6") MB/s each | $(samples batches) |"
    echo "| publish→delivery 64 B, \`memory\`, 1000 in flight, one record a frame | ≥ 1.5 × | $(calc %.2f "$flow/$echo138many") × ($(calc %.2f "$flow/1e6") M records/s) | C echo of 138 B, 8 × 32: $(calc %.2f "$echo138many/1e6") M/s | $(samples flow) |"
    echo "| 1,000 \`synced\` queues in turn, 256 B, 1000 in flight: rate | ≥ 0.7 × | $(calc %.2f "$many/$one") × ($(calc %.2f "$many/1e6") M records/s) | one queue: $(calc %.2f "$one/1e6") M records/s | $(samples many) |"
    echo "| the same: p50 | ≤ 1.5 × | $(calc %.2f "$many50/$one50") × ($many50 µs) | one queue: $one50 µs | $(samples many) |"
    echo "| recovery after SIGKILL under full load | ≤ 2 s per GB of journal | $seconds s from start to ready, $inside s of it recovery: $(calc %.2f "$seconds/($read/1e9)") s per GB read | $(calc %.2f "$read/1e9") GB of journal read | $alternations |"
} | tee "$table"
