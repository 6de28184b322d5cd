internal import BrokerBasics
internal import Glibc

/// Works on one input; one that takes more than a second is a failure.
///
/// Processor time, not the clock: a busy machine makes nothing fail.
package func withTimeLimit(_ body: () -> Void) {
    let began = processorNanoseconds()
    body()
    let taken = processorNanoseconds() - began
    invariant(taken < 1_000_000_000, "an input took \(taken / 1_000_000) ms")
}

private func processorNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
