#!/usr/bin/env bash
# Every row of the README's table, each beside its baseline of the same run: `make bench`.
#
# One shard on core 0, the load on core 1, both spinning. Each row is measured ALTERNATIONS times,
# each time on a fresh broker and right after its own baseline: disk and processor have modes that
# last for minutes, and a ratio across them says nothing. The table shows the medians of the figures
# and the median of the ratios. Results go to Bench/Results/<date>-<commit>.md, the raw JSON of every
# run beside it in a folder that git ignores.
#
#   ALTERNATIONS=5  SECONDS_EACH=3  LONG_ALTERNATIONS=3  LONG_SECONDS=60  DIR=/path/on/the/disk
#   PAIRS=10  MOVES=200  OVERLOAD_MINUTES=10  ROWS="confirm stream"  Bench/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

programs=.build/release
alternations=${ALTERNATIONS:-5}
seconds_each=${SECONDS_EACH:-3}
long_alternations=${LONG_ALTERNATIONS:-3}
long_seconds=${LONG_SECONDS:-60}
pairs=${PAIRS:-10}
overload_minutes=${OVERLOAD_MINUTES:-10}
dir=${DIR:-$(mktemp -d)}
port=${PORT:-7499}
admin=${ADMIN_PORT:-7498}
rows=${ROWS:-confirm deliver synced swapped stream batches flow queues replay shards move connections partitions overload recovery}
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
used=0
data=
trap 'stop; rm -rf "$dir"/data-*' EXIT

# serve CPU LOG [OPTIONS…]: a broker on what the data directory holds, spinning on that core.
serve() {
    local cpu=$1 log=$2
    shift 2
    "$programs/brokerd" "$@" --data-dir "$data" --listen "127.0.0.1:$port" \
        --admin "127.0.0.1:$admin" --idle spin --cpus "$cpu" --journal-size $journal 2>"$log" &
    broker=$!
    for _ in $(seq 3000); do
        if grep -q 'ready' "$log"; then return; fi
        sleep 0.01
    done
    echo "bench: the broker does not become ready; see $log" >&2
    exit 1
}
# start CPU [OPTIONS…]: a fresh broker. What the one before left is removed at the end: ext4 makes no file
# quickly where many were deleted within the last half minute.
start() {
    stop
    used=$((used + 1))
    data=$dir/data-$used
    local cpu=$1
    shift
    serve "$cpu" "$raw/brokerd.log" "$@"
}

# yardstick FILE NAME…: the baselines of these names, without a broker beside them.
yardstick() {
    local file=$1 only=()
    shift
    for name in "$@"; do only+=(--only "$name"); done
    stop
    echo "  $file: $*" >&2
    "$programs/brokerload" baseline --dir "$dir" --file-mib 512 --frame-sizes 138,1099 \
        --connections 8 --window 32 --server-cpu 0 --cpu 1 --duration "$seconds_each" "${only[@]}" \
        --out "$raw/$file.json" >/dev/null
}
# load FILE CPU ARGUMENTS…: one run of brokerload against the broker.
load() {
    local file=$1 cpu=$2
    shift 2
    echo "  $file: $*" >&2
    "$programs/brokerload" "$@" --closed-loop --server "127.0.0.1:$port" --cpu "$cpu" \
        --out "$raw/$file.json" >/dev/null
}

# value FILE KEY [WORKLOAD]: the first value of a key, of that workload in a list of results.
value() {
    awk -v want="\"workload\": \"${3:-}" -v key="\"$2\":" '
        /"workload":/ { here = index($0, want) > 0 }
        (want == "\"workload\": \"" || here) && index($0, key) {
            gsub(/[^0-9.]/, "", $2); print $2; exit
        }
    ' "$raw/$1.json"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
calc() { awk "BEGIN { printf \"$1\", $2 }"; }
# figure COUNT EXPRESSION: the median over the alternations; RUN stands for the number of one.
figure() {
    local run
    for run in $(seq "$1"); do
        # shellcheck disable=SC2294
        eval "calc '%.6f\n' \"${2//RUN/$run}\""
    done | median
}
is_wanted() { [[ " $rows " == *" $1 "* ]]; }
say() { echo "$*" >>"$raw/table"; }
: >"$raw/table"

short="--duration $seconds_each"
say "Commit \`$commit\`, $(date -u +%Y-%m-%d). \`make bench\`: each row $alternations times (batches" \
    "and recovery: $long_alternations), $seconds_each s each (batches: $long_seconds s), each time on a" \
    "fresh broker right after its baseline; medians of figures and of ratios. Shard on core 0, load on" \
    "core 1, both spinning; closed loop. $(nproc) cores of" \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r);" DISK
say
say '| what | bar | measured | beside it | samples |'
say '|---|---|---|---|---|'

# echoed ROW COMMAND TEXT BAR: 64 B records at level memory, one in flight, beside the echo.
echoed() {
    local row=$1 run
    is_wanted "$row" || return 0
    for run in $(seq "$alternations"); do
        yardstick "$row-base-$run" 'echo 138 B, 1 × 1'
        start 0
        # shellcheck disable=SC2086
        load "$row-$run" 1 "$2" $short --durability memory --size 64 --window 1
    done
    say "| $3 64 B, \`memory\`, one in flight, p50 | ≤ $4 × |" \
        "$(calc %.2f "$(figure "$alternations" "\$(value $row-RUN p50)/\$(value $row-base-RUN p50)")") ×" \
        "($(calc %.2f "$(figure "$alternations" "\$(value $row-RUN p50)")") µs) |" \
        "C echo of 138 B: $(calc %.2f "$(figure "$alternations" "\$(value $row-base-RUN p50)")") µs |" \
        "$alternations × $(value "$row-1" samples) |"
}
echoed confirm publish 'publish→confirm' 1.2
echoed deliver e2e 'publish→delivery' 1.6

# synced ROW SHARD_CPU LOAD_CPU TEXT
synced() {
    local row=$1 run base
    is_wanted "$row" || return 0
    for run in $(seq "$alternations"); do
        yardstick "$row-base-$run" 'echo 1099 B, 1 × 1' 'append 1024 B, 1'
        start "$2"
        # shellcheck disable=SC2086
        load "$row-$run" "$3" publish $short --durability synced --size 1024 --window 1
    done
    base="(\$(value $row-base-RUN p50 append)+\$(value $row-base-RUN p50 echo))"
    say "| $4 | p50 ≤ 1.15 ×, p99 ≤ 2.5 × its p50 |" \
        "$(calc %.2f "$(figure "$alternations" "\$(value $row-RUN p50)/$base")") ×" \
        "($(calc %.1f "$(figure "$alternations" "\$(value $row-RUN p50)")") µs); p99" \
        "$(calc %.2f "$(figure "$alternations" "\$(value $row-RUN p99)/\$(value $row-RUN p50)")") × p50 |" \
        "raw append $(calc %.1f "$(figure "$alternations" "\$(value $row-base-RUN p50 append)")") µs" \
        "+ echo $(calc %.1f "$(figure "$alternations" "\$(value $row-base-RUN p50 echo)")") µs |" \
        "$alternations × $(value "$row-1" samples) |"
}
synced synced 0 1 'publish→confirm 1 KiB, `synced`, one in flight'
synced swapped 1 0 "the same, cores swapped: the disk's interrupt on the other"

if is_wanted stream; then
    for run in $(seq "$alternations"); do
        yardstick "stream-base-$run" 'append 131072 B, 2'
        start 0
        # shellcheck disable=SC2086
        load "stream-$run" 1 publish $short --durability synced --size 256 --window 1000
    done
    base='$(value stream-base-RUN bytes_per_second)'
    say "| 256 B, \`synced\`, 1000 in flight, one record a frame | ≥ 0.4 × |" \
        "$(calc %.2f "$(figure "$alternations" "\$(value stream-RUN bytes_per_second)/$base")") ×" \
        "($(calc %.0f "$(figure "$alternations" '$(value stream-RUN bytes_per_second)/1e6')") MB/s," \
        "$(calc %.2f "$(figure "$alternations" '$(value stream-RUN records_per_second)/1e6')") M records/s) |" \
        "raw 128 KiB appends, two in flight: $(calc %.0f "$(figure "$alternations" "$base/1e6")") MB/s |" \
        "$alternations × $(value stream-1 samples) |"
fi

if is_wanted batches; then
    for run in $(seq "$long_alternations"); do
        yardstick "batches-base-$run" 'segments beside the other, segments by 256'
        start 0
        load "batches-$run" 1 publish --duration "$long_seconds" --durability synced \
            --size 256 --batch 32 --window 64
        stop
        rm -rf "$data"
    done
    base='$(value batches-base-RUN bytes_per_second segments)'
    say "| 256 B, \`synced\`, batches of 32, $long_seconds s | ≥ 0.7 × |" \
        "$(calc %.2f "$(figure "$long_alternations" "\$(value batches-RUN bytes_per_second)/$base")") ×" \
        "($(calc %.0f "$(figure "$long_alternations" '$(value batches-RUN bytes_per_second)/1e6')") MB/s) |" \
        "raw journal and segment streams together:" \
        "$(calc %.0f "$(figure "$long_alternations" "$base/1e6")") MB/s each |" \
        "$long_alternations × $(value batches-1 samples) |"
fi

if is_wanted flow; then
    for run in $(seq "$alternations"); do
        yardstick "flow-base-$run" 'echo 138 B, 8 × 32'
        start 0
        # shellcheck disable=SC2086
        load "flow-$run" 1 e2e $short --durability memory --size 64 --window 1000
    done
    base='$(value flow-base-RUN records_per_second)'
    say "| publish→delivery 64 B, \`memory\`, 1000 in flight, one record a frame | ≥ 1.5 × |" \
        "$(calc %.2f "$(figure "$alternations" "\$(value flow-RUN records_per_second)/$base")") ×" \
        "($(calc %.2f "$(figure "$alternations" '$(value flow-RUN records_per_second)/1e6')") M records/s) |" \
        "C echo of 138 B, 8 × 32: $(calc %.2f "$(figure "$alternations" "$base/1e6")") M/s |" \
        "$alternations × $(value flow-1 samples) |"
fi

# Warm for longer than elsewhere: each queue has begun its file, and the journal has gone round.
if is_wanted queues; then
    for run in $(seq "$alternations"); do
        for queues in 1 1000; do
            start 0
            # shellcheck disable=SC2086
            load "queues-$queues-$run" 1 publish $short --warmup 3 --durability synced --size 256 \
                --window 1000 --queues "$queues"
        done
    done
    for what in 'records_per_second rate ≥_0.7 1e6 %.2f_M_records/s' 'p50 p50 ≤_1.5 1 %.0f_µs'; do
        read -r key text bar scale format <<<"$what"
        say "| 1,000 \`synced\` queues in turn, 256 B, 1000 in flight: $text | ${bar/_/ } × |" \
            "$(calc %.2f "$(figure "$alternations" "\$(value queues-1000-RUN $key)/\$(value queues-1-RUN $key)")") ×" \
            "($(calc "${format//_/ }" "$(figure "$alternations" "\$(value queues-1000-RUN $key)/$scale")")) |" \
            "one queue: $(calc "${format//_/ }" "$(figure "$alternations" "\$(value queues-1-RUN $key)/$scale")") |" \
            "$alternations × $(value queues-1000-1 samples) |"
    done
fi

# Replay: a queue that no memory holds is read at full speed, again and again, beside a publisher. Each pair
# is the publisher alone, alone once more (the control) and beside the replay; the worst ratios count. The
# two loads share a core: the publisher sleeps while it waits, and the consumer runs when nobody else does.
replayed() { echo "\$(value replay-$1-RUN $2)"; }
# worst EXPRESSION: the largest over the pairs; RUN stands for the number of one.
worst() {
    local run
    for run in $(seq "$pairs"); do
        # shellcheck disable=SC2294
        eval "calc '%.6f\n' \"${1//RUN/$run}\""
    done | sort -n | tail -n 1
}
if is_wanted replay; then
    yardstick replay-base 'read 262144 B, 4'
    start 0 --tail-memory 64MiB --checkpoint-interval 1s
    load replay-fill 1 publish --duration 5 --durability synced --size 256 --batch 32 --window 64 \
        --keep cold
    sleep 3
    for run in $(seq "$pairs"); do
        for part in alone again beside; do
            reader=
            if [ "$part" = beside ]; then
                chrt --idle 0 "$programs/brokerload" consume cold --cpu 1 --server "127.0.0.1:$port" \
                    --duration $((seconds_each + 2)) --out "$raw/replay-read-$run.json" >/dev/null &
                reader=$!
            fi
            # shellcheck disable=SC2086
            load "replay-$part-$run" 1 publish $short --durability synced --size 1024 --window 1 --idle block
            if [ -n "$reader" ]; then wait "$reader"; fi
        done
    done
    base='$(value replay-base bytes_per_second)'
    say "| replay of a queue on disk beside a publisher, 1 KiB, \`synced\`, one in flight: its p99 |" \
        "≤ 1.5 × alone, worst of $pairs |" \
        "$(calc %.2f "$(worst "$(replayed beside p99)/$(replayed alone p99)")") × |" \
        "alone twice: $(calc %.2f "$(worst "$(replayed again p99)/$(replayed alone p99)")") × |" \
        "$pairs × $(value replay-beside-1 samples) |"
    say "| the same: bytes replayed | ≥ 0.6 × |" \
        "$(calc %.2f "$(figure "$pairs" "$(replayed read bytes_per_second)/$base")") ×" \
        "($(calc %.0f "$(figure "$pairs" "$(replayed read bytes_per_second)/1e6")") MB/s) |" \
        "raw 256 KiB reads, four in flight: $(calc %.0f "$(calc %.6f "$(eval echo "$base")/1e6")") MB/s |" \
        "$pairs |"
fi

# Shards: CPU time of the server per record, with two shards on one core, each with a load of its own: all
# of it to the right shard, then all of it to the other. Blocking idle: a spinning shard uses its core up.
# cpu: seconds of the broker's CPU time so far.
cpu() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$broker/stat"; }
# sharded KIND RUN SHARDS PORT PORT: prints nanoseconds of CPU per record into a file.
sharded() {
    local kind=$1 run=$2 shards=$3 first=$4 second=$5 before cpus=0 writer=
    if [ "$shards" -gt 1 ]; then cpus=0,0; fi
    stop
    used=$((used + 1))
    data=$dir/data-$used
    "$programs/brokerd" --data-dir "$data" --listen "127.0.0.1:$port" --admin off --idle block \
        --cpus "$cpus" --shards "$shards" --journal-size 128MiB 2>"$raw/brokerd.log" &
    broker=$!
    until grep -q 'ready:' "$raw/brokerd.log"; do sleep 0.01; done
    before=$(cpu)
    for to in "$first" "$second"; do
        "$programs/brokerload" publish --closed-loop --server "127.0.0.1:$to" --cpu 1 \
            --durability memory --size 64 --window 1000 --duration "$seconds_each" \
            --out "$raw/shards-$kind-$run-$to.json" >/dev/null &
        writer="$writer $!"
        # The first queue goes to shard 0, the second to shard 1.
        sleep 0.3
    done
    # shellcheck disable=SC2086
    wait $writer
    echo "  shards-$kind-$run" >&2
    local after published
    after=$(cpu)
    published=$("$programs/brokerctl" --server "127.0.0.1:$port" server status -o json \
        | sed -n 's/.*"records_published": *"\{0,1\}\([0-9]*\).*/\1/p')
    calc '%.3f\n' "($after-$before)*1e9/$published" >"$raw/shards-$kind-$run.ns"
}
if is_wanted shards; then
    for run in $(seq "$pairs"); do
        sharded one "$run" 1 "$port" "$port"
        sharded right "$run" 2 $((port + 1)) $((port + 2))
        sharded wrong "$run" 2 $((port + 2)) $((port + 1))
    done
    spent() { echo "\$(cat $raw/shards-$1-RUN.ns)"; }
    for what in 'right right_shard 1.15' 'wrong wrong_shard 1.6'; do
        read -r kind text bar <<<"$what"
        say "| server CPU per record, two shards, all to the ${text/_/ }; 64 B, \`memory\`, 2 × 1000 in flight |" \
            "≤ $bar × one shard |" \
            "$(calc %.2f "$(figure "$pairs" "$(spent "$kind")/$(spent one)")") ×" \
            "($(calc %.0f "$(figure "$pairs" "$(spent "$kind")")") ns) |" \
            "one shard, the same load: $(calc %.0f "$(figure "$pairs" "$(spent one)")") ns | $pairs |"
    done
fi

metric() { curl -fsS "http://127.0.0.1:$admin/metrics" | sed -n "s/^$1 //p"; }
# resident: KiB of the broker's memory.
resident() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$broker/status"; }

# Moves: a partition goes to the other shard and back while records are published and delivered. Both shards
# on one core, so blocking; the load checks every delivery's order and counts what is refused.
moves=${MOVES:-200}
if is_wanted move; then
    stop
    used=$((used + 1))
    data=$dir/data-$used
    "$programs/brokerd" --data-dir "$data" --listen "127.0.0.1:$port" --admin off --idle block \
        --cpus 0,0 --shards 2 --journal-size 128MiB 2>"$raw/brokerd.log" &
    broker=$!
    until grep -q 'ready:' "$raw/brokerd.log"; do sleep 0.01; done
    ctl() { "$programs/brokerctl" --server "127.0.0.1:$port" "$@"; }
    echo "  move: $moves moves" >&2
    "$programs/brokerload" e2e --closed-loop --server "127.0.0.1:$port" --cpu 1 --durability synced \
        --size 256 --window 100 --duration $((moves / 10 + 5)) --out "$raw/move.json" >/dev/null &
    writer=$!
    until [ -n "$(ctl queue ls -o csv | sed -n 2p)" ]; do sleep 0.1; done
    queue=$(ctl queue ls -o csv | sed -n '2s/,.*//p')
    sleep 1
    for run in $(seq "$moves"); do
        ctl queue move "$queue/0" --to $((run % 2)) -o json \
            | sed -n 's/.*"pause_nanoseconds": *"\{0,1\}\([0-9]*\).*/\1/p'
        sleep 0.05
    done >"$raw/move.pauses"
    # It fails with whatever is lost, out of order, refused or not answered.
    wait "$writer"
    pause() { sort -n "$raw/move.pauses" | awk -v part="$1" '{ v[NR] = $1 } END { print v[int(NR * part + 0.5)] / 1e6 }'; }
    say "| a partition moves under publish→delivery 256 B, \`synced\`, 100 in flight: the pause | p99 ≤ 20 ms |" \
        "$(calc %.2f "$(pause 0.99)") ms; p50 $(calc %.2f "$(pause 0.5)") ms;" \
        "nothing lost, refused or out of order |" \
        "$(calc %.0f "$(value move records_per_second)/1e3") thousand records/s meanwhile |" \
        "$(wc -l <"$raw/move.pauses") |"
fi

# Connections: a publisher beside many that said HELLO and nothing more. Each pair is the publisher alone,
# alone once more (the control) and beside them; the worst ratios count. The tails' memory is taken in the
# background after the start: little of it, and a moment, so that it is not in the difference.
connections=10000
connected() { echo "\$(value connections-$1-RUN p99)"; }
if is_wanted connections; then
    for run in $(seq "$pairs"); do
        start 0 --tail-memory 64MiB
        sleep 1
        for part in alone again beside; do
            holder=
            if [ "$part" = beside ]; then
                before=$(resident)
                "$programs/brokerload" hold --server "127.0.0.1:$port" --connections "$connections" \
                    --duration 3600 2>/dev/null &
                holder=$!
                until [ "$(metric millrace_connections)" -ge "$connections" ]; do sleep 0.1; done
                calc '%.3f\n' "($(resident)-$before)/$connections" >"$raw/connections-$run.kib"
            fi
            load "connections-$part-$run" 1 publish --duration 10 --durability memory --size 64 --window 1
            if [ -n "$holder" ]; then
                kill -INT "$holder"
                wait "$holder" || { echo "bench: idle connections were closed" >&2; exit 1; }
            fi
        done
    done
    say "| 10,000 idle connections: memory of each | ≤ 16 KiB |" \
        "$(calc %.2f "$(figure "$pairs" "\$(cat $raw/connections-RUN.kib)")") KiB |" \
        "the broker's resident memory with and without | $pairs |"
    say "| publish→confirm 64 B, \`memory\`, one in flight, beside them: p99 | ≤ 1.2 × alone, worst of $pairs |" \
        "$(calc %.2f "$(worst "$(connected beside)/$(connected alone)")") ×" \
        "($(calc %.1f "$(figure "$pairs" "$(connected beside)")") µs) |" \
        "alone twice: $(calc %.2f "$(worst "$(connected again)/$(connected alone)")") ×" \
        "($(calc %.1f "$(figure "$pairs" "$(connected alone)")") µs) |" \
        "$pairs × $(value connections-beside-1 samples) |"
fi

# Partitions: 40,000 of them, all idle, then written in turn.
if is_wanted partitions; then
    for run in $(seq "$alternations"); do
        start 0 --tail-memory 64MiB
        sleep 1
        before=$(resident)
        # shellcheck disable=SC2086
        load "partitions-one-$run" 1 publish $short --warmup 3 --durability synced --size 256 --window 1
        "$programs/brokerload" make many --server "127.0.0.1:$port" --queues 10000 --partitions 4
        calc '%.3f\n' "($(resident)-$before)/40000" >"$raw/partitions-$run.kib"
        kill -KILL "$broker"
        wait "$broker" 2>/dev/null || true
        began=$(date +%s%N)
        serve 0 "$raw/partitions-$run.log"
        calc '%.3f\n' "($(date +%s%N)-$began)/1e9" >"$raw/partitions-$run.seconds"
        # shellcheck disable=SC2086
        load "partitions-many-$run" 1 publish $short --warmup 10 --durability synced --size 256 --window 1 \
            --queues 10000 --partitions 4 --keep many
        stop
        rm -rf "$data"
    done
    say "| 10,000 queues × 4 partitions: start after SIGKILL | ≤ 5 s |" \
        "$(calc %.2f "$(figure "$alternations" "\$(cat $raw/partitions-RUN.seconds)")") s |" \
        "to ready | $alternations |"
    say "| the same: memory of an idle partition | ≤ 4 KiB |" \
        "$(calc %.2f "$(figure "$alternations" "\$(cat $raw/partitions-RUN.kib)")") KiB |" \
        "the broker's resident memory with and without | $alternations |"
    say "| the same: publish→confirm 256 B, \`synced\`, one in flight, to all in turn: p50 | ≤ 1.3 × |" \
        "$(calc %.2f "$(figure "$alternations" '$(value partitions-many-RUN p50)/$(value partitions-one-RUN p50)')") ×" \
        "($(calc %.1f "$(figure "$alternations" '$(value partitions-many-RUN p50)')") µs) |" \
        "one queue: $(calc %.1f "$(figure "$alternations" '$(value partitions-one-RUN p50)')") µs |" \
        "$alternations × $(value partitions-many-1 samples) |"
fi

# Overload: the rate that a window sustains for a minute, with writing behind and retention under way, then
# twice that on a schedule, to the same queue. The largest resident memory of the second run beside that at
# the end of the first.
if is_wanted overload; then
    start 0
    "$programs/brokerctl" --server "127.0.0.1:$port" queue create overload --retention-bytes 8GiB >/dev/null
    load overload-peak 1 publish --keep overload --warmup 30 --duration 60 --durability synced --size 256 \
        --window 1000
    rate=$(calc %.0f "2*$(value overload-peak records_per_second)")
    before=$(resident)
    echo "  overload: $rate records/s for $overload_minutes min" >&2
    "$programs/brokerload" publish --keep overload --server "127.0.0.1:$port" --cpu 1 --durability synced \
        --size 256 --window 65536 --rate "$rate" --duration $((overload_minutes * 60)) \
        --out "$raw/overload.json" >/dev/null &
    writer=$!
    most=$before
    while kill -0 "$writer" 2>/dev/null; do
        now=$(resident)
        if [ "$now" -gt "$most" ]; then most=$now; fi
        sleep 1
    done
    # brokerload fails with whatever is refused or not answered: an end with 0 says there was nothing.
    wait "$writer"
    say "| $overload_minutes min at twice the sustainable rate, 256 B, \`synced\`: confirmed | ≥ 0.9 × the peak |" \
        "$(calc %.2f "$(value overload records_per_second)/$(value overload-peak records_per_second)") ×" \
        "($(calc %.2f "$(value overload records_per_second)/1e6") M records/s), nothing refused |" \
        "1000 in flight for a minute: $(calc %.2f "$(value overload-peak records_per_second)/1e6") M records/s | 1 |"
    say "| the same: the broker's resident memory | bounded |" \
        "$(calc %.2f "$most/$before") × ($(calc %.0f "$most/1024") MiB at most) |" \
        "before: $(calc %.0f "$before/1024") MiB | 1 |"
fi

# Recovery: without write-behind the journal fills until back-pressure stops the load; then killed, and
# started on what is left.
if is_wanted recovery; then
    for run in $(seq "$long_alternations"); do
        start 0 --writes-behind-max 0
        "$programs/brokerload" publish --server "127.0.0.1:$port" --cpu 1 --durability synced \
            --size 256 --batch 32 --window 64 --duration 60 >/dev/null 2>&1 &
        writer=$!
        filled=0
        for _ in $(seq 100); do
            before=$filled
            sleep 0.2
            filled=$(metric millrace_journal_used_bytes)
            if [ "$filled" -gt 268435456 ] && [ "$filled" -eq "$before" ]; then break; fi
        done
        kill -KILL "$broker"
        wait "$broker" 2>/dev/null || true
        wait "$writer" 2>/dev/null || true
        echo "  recovery-$run: $filled bytes of the journal used at the kill" >&2
        began=$(date +%s%N)
        serve 0 "$raw/recovery-$run.log"
        calc '%.3f %.3f\n' "($(date +%s%N) - $began) / 1e9, $filled/536870912*100" \
            >"$raw/recovery-$run.seconds"
        stop
    done
    seconds='$(cut -d" " -f1 $raw/recovery-RUN.seconds)'
    full='$(cut -d" " -f2 $raw/recovery-RUN.seconds)'
    logged() { echo "\$(grep -o '$1=[0-9.]*' \$raw/recovery-RUN.log | head -n 1 | cut -d= -f2)"; }
    say "| recovery after SIGKILL, the journal $(calc %.0f "$(figure "$long_alternations" "$full")") % full |" \
        "≤ 2 s per GB of journal |" \
        "$(calc %.2f "$(figure "$long_alternations" "$seconds/($(logged journal_bytes_read)/1e9)")") s per GB:" \
        "$(calc %.3f "$(figure "$long_alternations" "$seconds")") s from start to ready," \
        "$(calc %.3f "$(figure "$long_alternations" "$(logged recovery_seconds)")") s of it recovery |" \
        "$(calc %.2f "$(figure "$long_alternations" "$(logged journal_bytes_read)/1e9")") GB of journal read," \
        "$(calc %.0f "$(figure "$long_alternations" "$(logged records_replayed)/1e3")") thousand records replayed |" \
        "$long_alternations |"
fi

disk=$(grep -o 'disk="[^"]*"' "$raw/brokerd.log" | head -n 1)
sed "s|DISK\$|$disk|" "$raw/table" >"$table"
rm "$raw/table"
cat "$table"
