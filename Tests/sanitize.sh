#!/usr/bin/env bash
# Builds and runs the tests under sanitizers, each in a build directory of its own: `.build-thread`,
# `.build-address`.
#
#   sanitize.sh thread|address ...   FILTER=NAME for some of the tests
#
# The programs that tests start are built the same way. A report of theirs goes to a file, since a
# program that is killed has no exit code of its own: a file there is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

# Tests of what a sanitizer changes, or makes too slow to say anything:
#  - AllocationTests counts calls of malloc, which is the sanitizer's own here.
#  - CrashEnumeration, BrokenOnPurpose and ManySeeds play tens of thousands of whole brokers, on one
#    thread and without a kernel: nothing that the smaller tests of the same machine do not do.
#  - WorkloadTests and BaselineTests let the load tool measure for a fraction of a second, in which
#    nothing comes to its end here.
left_out='AllocationTests|CrashEnumerationTests|BrokenOnPurposeTests|ManySeedsTests'
left_out+='|WorkloadTests|BaselineTests'

# With it on, a crash waits for a debugger that nobody is.
export SWIFT_BACKTRACE=enable=no

sanitize() {
    local sanitizer=$1 directory=.build-$1 reports=.build-$1/reports status=0
    ${SWIFT:-swift} build -c release --build-tests --sanitize "$sanitizer" \
        --scratch-path "$directory"
    rm -rf "$reports"
    mkdir -p "$reports"
    local log=$PWD/$reports/report
    export TSAN_OPTIONS="log_path=$log:exitcode=66:suppressions=$PWD/Tests/thread.supp"
    export ASAN_OPTIONS="log_path=$log:exitcode=66:detect_leaks=1"
    export LSAN_OPTIONS="suppressions=$PWD/Tests/leak.supp:print_suppressions=0"
    ${SWIFT:-swift} test -c release --sanitize "$sanitizer" --scratch-path "$directory" \
        --skip-build ${FILTER:+--filter "$FILTER"} --skip "$left_out" || status=$?
    if compgen -G "$log.*" >/dev/null; then
        cat "$log".*
        echo "reports of the $sanitizer sanitizer: $(compgen -G "$log.*" | wc -l) files in $reports"
        status=1
    fi
    return $status
}

[ $# -gt 0 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d; exit 2; }
for sanitizer in "$@"; do sanitize "$sanitizer"; done
