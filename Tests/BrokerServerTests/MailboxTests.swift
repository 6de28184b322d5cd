import ShardRuntime
import Synchronization
import Testing

@Suite("Mailboxes")
struct MailboxTests {
    @Test("full is an answer, empty is too, for every small capacity", arguments: [1, 2, 4, 8])
    func bounds(capacity: Int) {
        let mailbox = Mailbox<Int>(capacity: capacity)
        var next = 0
        for _ in 0..<20 {
            #expect(mailbox.take() == nil)
            #expect(mailbox.room() == capacity)
            for place in 0..<capacity {
                mailbox.put(next + place)
                #expect(mailbox.room() == capacity - place - 1)
            }
            // Nothing is seen before it is published.
            #expect(mailbox.isEmpty)
            #expect(mailbox.take() == nil)
            #expect(mailbox.publish())
            #expect(!mailbox.publish())
            #expect(!mailbox.isEmpty)
            #expect(mailbox.depth == capacity)
            for place in 0..<capacity {
                #expect(mailbox.take() == next + place)
                // A place comes back when the reader says so.
                #expect(mailbox.room() == 0)
            }
            mailbox.release()
            #expect(mailbox.room() == capacity)
            next += capacity
        }
    }

    @Test("two threads: everything arrives once and in order", arguments: [2, 64])
    func twoThreads(capacity: Int) throws {
        let count = 1_000_000
        let mailbox = Mailbox<Int>(capacity: capacity)
        let isDone = Atomic<Bool>(false)
        let wrong = Atomic<Int>(0)
        let box = Shared(mailbox)
        try DetachedThread.start("reader") {
            var expected = 0
            while expected < count {
                while let value = box.mailbox.take() {
                    if value != expected { wrong.add(1, ordering: .relaxed) }
                    expected += 1
                }
                box.mailbox.release()
                CoreControl.yield()
            }
            isDone.store(true, ordering: .releasing)
        }
        var next = 0
        while next < count {
            let room = min(mailbox.room(), count - next)
            for _ in 0..<room {
                mailbox.put(next)
                next += 1
            }
            if room > 0 { mailbox.publish() } else { CoreControl.yield() }
        }
        while !isDone.load(ordering: .acquiring) { CoreControl.yield() }
        #expect(wrong.load(ordering: .relaxed) == 0)
        #expect(mailbox.isEmpty)
    }

    private final class Shared: Sendable {
        let mailbox: Mailbox<Int>
        init(_ mailbox: Mailbox<Int>) { self.mailbox = mailbox }
    }
}
