#!/usr/bin/env bash
# Builds the fuzz targets and runs each from the kept inputs, two at a time.
#
#   run.sh --runs N | --seconds N   how long each target runs
#   run.sh --keep                   the smallest set of inputs with the same coverage becomes the kept
#
# Kept inputs are one file per target, Corpus/TARGET.txt: an input per line, in base64. What is new
# goes to .build/corpus, what fails to .build/failed.
set -euo pipefail
cd "$(dirname "$0")"

# TARGETS="frames journal" for some of them.
read -ra targets <<<"${TARGETS:-frames connections journal segments}"
kept=$PWD/.build/kept
found=$PWD/.build/corpus
failed=$PWD/.build/failed
programs=$PWD/.build/release

# With it on, a crash waits for a debugger that nobody is.
export SWIFT_BACKTRACE=enable=no
# What was freed is held back for a while to catch its use; it counts as resident memory, and much of
# it is slow. Fresh memory is not filled, and none is given back to the system meanwhile.
asan=quarantine_size_mb=8:malloc_context_size=2:max_malloc_fill_size=0
export ASAN_OPTIONS=$asan:allocator_release_to_os_interval_ms=-1:detect_leaks=1

# Links libFuzzer; what is instrumented, and how, is for each module to say: Package.swift.
build() { ${SWIFT:-swift} build -c release --sanitize fuzzer; }

longest() { [ "$1" = frames ] && echo 4096 || echo 1024; }

unpack() {
    local number=0 line
    rm -rf "${kept:?}/$1"
    mkdir -p "$kept/$1"
    while IFS= read -r line; do
        number=$((number + 1))
        base64 -d <<<"$line" >"$kept/$1/$number"
    done <"Corpus/$1.txt"
}

# Runs one target. A target itself stops at an input that takes more than a second of processor
# time; the 60 s here are for one that never ends, on a machine that does other things.
run() {
    local target=$1
    shift
    mkdir -p "$found/$target" "$failed/$target"
    unpack "$target"
    "$programs/fuzz-$target" "$@" -timeout=60 -rss_limit_mb=512 -max_len="$(longest "$target")" \
        -len_control=0 -print_final_stats=1 -artifact_prefix="$failed/$target/" \
        "$found/$target" "$kept/$target" >"$found/$target.log" 2>&1
}

columns='%-12s %7s %12s %7s %9s %12s %9s %8s\n'

# One line of the table, from what libFuzzer says: `inputs` is with how many it began.
row() {
    local target=$1 seconds=$2 status=$3 log=$found/$1.log
    local said executions
    said=$(grep -aE '^#[0-9]+.* cov: ' "$log" | tail -1)
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
    printf "$columns" "$target" "$(sed -n 's/.*seed corpus: files: \([0-9]*\).*/\1/p' "$log")" \
        "${executions:--}" \
        "$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' <<<"$said")" \
        "$(sed -n 's/.* ft: \([0-9]*\).*/\1/p' <<<"$said")" \
        "$(sed -n 's/.* corp: \([^ ]*\).*/\1/p' <<<"$said")" \
        "$([ "$status" = 0 ] && echo 0 || echo "1 ($status)")" "$seconds s"
}

one() {
    local began=$SECONDS status=0
    run "$@" || status=$?
    row "$1" $((SECONDS - began)) "$status"
    [ "$status" = 0 ] && return
    grep -aE 'ERROR|Fatal error|SUMMARY|Test unit written' "$found/$1.log" || tail -5 "$found/$1.log"
    echo "repeat it: SWIFT_BACKTRACE=enable=no $programs/fuzz-$1 FILE; all it said: $found/$1.log"
    return 1
}

fuzz() {
    local failures=0 at jobs job target
    printf "$columns" target inputs executions edges features corpus failures time
    for ((at = 0; at < ${#targets[@]}; at += 2)); do
        jobs=()
        for target in "${targets[@]:at:2}"; do
            one "$target" "$@" &
            jobs+=($!)
        done
        for job in "${jobs[@]}"; do wait "$job" || failures=1; done
    done
    return $failures
}

keep() {
    local target smallest input
    for target in "${targets[@]}"; do
        unpack "$target"
        mkdir -p "$found/$target"
        smallest=$(mktemp -d)
        "$programs/fuzz-$target" -merge=1 -max_len="$(longest "$target")" "$smallest" \
            "$kept/$target" "$found/$target" >"$found/$target.log" 2>&1
        for input in "$smallest"/*; do base64 -w0 "$input" && echo; done |
            LC_ALL=C sort >"Corpus/$target.txt"
        rm -rf "$smallest"
    done
    wc Corpus/*.txt
}

case ${1:-} in
--runs) build && fuzz -runs="$2" ;;
--seconds) build && fuzz -max_total_time="$2" ;;
--keep) build && keep ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" | sed -n 1,8p
    exit 2
    ;;
esac
