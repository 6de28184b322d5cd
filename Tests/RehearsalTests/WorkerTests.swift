import ReplayHarness
import Testing

@Suite struct WorkerTests {
    @Test("a thread gives its result, again to whoever asks again")
    func result() throws {
        let worker = try Worker { 7 }
        #expect(worker.join() == 7)
        #expect(worker.join() == 7)
    }

    @Test("a thread that cannot be made is an error in words, and its body never runs")
    func failure() {
        // Nothing has so much address space.
        let failure = #expect(throws: WorkerFailure.self) {
            try Worker(stackBytes: 1 << 60) { Issue.record("it ran") }
        }
        #expect(failure?.description.hasPrefix("a thread could not be made: ") == true)
    }
}
