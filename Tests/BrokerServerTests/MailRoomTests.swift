import BrokerServer
import BrokerShard
import Glibc
import ShardRuntime
import Synchronization
import Testing

/// Who sleeps is woken by whoever posts to it, and nobody else is.
@Suite("The mail room")
struct MailRoomTests {
    /// The shards of one broker, without their threads.
    private final class Office: Sendable {
        let controls: [ShardControl]
        let room: MailRoom

        init(shards: Int) {
            controls = (0..<shards).map { _ in ShardControl() }
            room = MailRoom(controls)
        }

        /// Posts one message, as a shard does at the end of its cycle.
        func post(from: Int, to: Int, _ lane: PeerLane, _ number: Int = 0) {
            let mailbox = room.mailbox(from: from, to: to, lane)
            mailbox.put(PeerMessage(.bytes, link: Int32(number)))
            if mailbox.publish() { room.wakeIfAsleep(to) }
        }

        /// Takes what has come, and gives its places back.
        func take(from: Int, to: Int, _ lane: PeerLane) -> [Int] {
            let mailbox = room.mailbox(from: from, to: to, lane)
            var numbers: [Int] = []
            while let message = mailbox.take() { numbers.append(Int(message.link)) }
            mailbox.release()
            return numbers
        }

        /// Sleeps until the shard is signalled, for at most so long; takes the signal.
        ///
        /// - Returns: false when no signal came.
        func sleep(_ shard: Int, milliseconds: Int32) -> Bool {
            let descriptor = controls[shard].eventDescriptor
            var wanted = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard poll(&wanted, 1, milliseconds) == 1 else { return false }
            var count: UInt64 = 0
            return read(descriptor, &count, 8) == 8
        }
        func isSignalled(_ shard: Int) -> Bool { sleep(shard, milliseconds: 0) }
    }

    /// Every pair of three shards, and every lane between them.
    private static let ways = (0..<3).flatMap { from in
        (0..<3).filter { $0 != from }.flatMap { to in
            PeerLane.allCases.map { (from: from, to: to, lane: $0) }
        }
    }

    @Test("a shard that is awake is not signalled, one that sleeps is, and nobody beside it")
    func signals() {
        let office = Office(shards: 3)
        for (number, way) in Self.ways.enumerated() {
            office.post(from: way.from, to: way.to, way.lane, number)
            #expect((0..<3).allSatisfy { !office.isSignalled($0) }, "\(way), awake")
            #expect(office.take(from: way.from, to: way.to, way.lane) == [number])

            #expect(office.room.mayFallAsleep(way.to))
            #expect(!office.isSignalled(way.to), "\(way), asleep")
            office.post(from: way.from, to: way.to, way.lane, number)
            #expect((0..<3).filter { office.isSignalled($0) } == [way.to], "\(way)")
            office.room.wakeUp(way.to)
            #expect(office.take(from: way.from, to: way.to, way.lane) == [number])
        }
    }

    @Test("what was posted before a shard sleeps keeps it awake, and it counts as awake then")
    func lastLook() {
        let office = Office(shards: 3)
        for way in Self.ways {
            #expect(office.room.mayFallAsleep(way.to))
            office.room.wakeUp(way.to)
            office.post(from: way.from, to: way.to, way.lane)
            #expect(!office.room.mayFallAsleep(way.to), "\(way)")
            office.post(from: way.from, to: way.to, way.lane)
            #expect(!office.isSignalled(way.to), "\(way): it is awake")
            #expect(office.take(from: way.from, to: way.to, way.lane).count == 2)
        }
    }

    @Test("what is not published yet neither keeps a shard awake nor wakes it")
    func unpublished() {
        let office = Office(shards: 2)
        let mailbox = office.room.mailbox(from: 0, to: 1, .request)
        mailbox.put(PeerMessage(.taken))
        #expect(office.room.mayFallAsleep(1))
        #expect(!office.isSignalled(1))
        #expect(mailbox.publish())
        office.room.wakeIfAsleep(1)
        #expect(office.isSignalled(1))
    }

    /// What two threads that play shards count.
    private final class Game: Sendable {
        let office = Office(shards: 2)
        let ended = Atomic<Int>(0)
        let lost = Atomic<Int>(0)
        let misplaced = Atomic<Int>(0)
        let sleeps = Atomic<Int>(0)
        let isOver = Atomic<Bool>(false)

        /// One shard's thread: the first begins, each answers the other's message with the next, and sleeps
        /// whenever there is none.
        func play(_ shard: Int, messages: Int, patienceMilliseconds: Int32) {
            defer { ended.add(1, ordering: .releasing) }
            let other = 1 - shard
            // The control lane one way, replies the other: each looks at all lanes before it sleeps.
            let (mine, theirs): (PeerLane, PeerLane) =
                shard == 0 ? (.control, .reply) : (.reply, .control)
            if shard == 0 { office.post(from: 0, to: 1, mine, 0) }
            var next = other
            while next < messages, !isOver.load(ordering: .relaxed) {
                for number in office.take(from: other, to: shard, theirs) {
                    if number != next { misplaced.add(1, ordering: .relaxed) }
                    next += 2
                    office.post(from: shard, to: other, mine, number + 1)
                    // Now and then the answer comes while this one looks for the last time.
                    for _ in 0..<(number % 64) { _ = isOver.load(ordering: .relaxed) }
                }
                guard next < messages, office.room.mayFallAsleep(shard) else { continue }
                if office.sleep(shard, milliseconds: patienceMilliseconds) {
                    sleeps.add(1, ordering: .relaxed)
                } else if !isOver.load(ordering: .relaxed) {
                    lost.add(1, ordering: .relaxed)
                    isOver.store(true, ordering: .relaxed)
                }
                office.room.wakeUp(shard)
            }
        }
    }

    /// Every message finds its reader awake, about to sleep, or asleep; were a wake-up lost, both would
    /// sleep on.
    @Test("two threads that answer each other and sleep in between lose no wake-up")
    func noLostWakeUp() throws {
        let messages = 200_000
        let game = Game()
        for shard in 0..<2 {
            // Far longer than a busy machine lets a thread wait.
            try DetachedThread.start("mail-\(shard)") {
                game.play(shard, messages: messages, patienceMilliseconds: 30_000)
            }
        }
        while game.ended.load(ordering: .acquiring) < 2 { usleep(1_000) }
        #expect(game.lost.load(ordering: .relaxed) == 0)
        #expect(game.misplaced.load(ordering: .relaxed) == 0)
        // Without sleeps there was nothing to wake from.
        #expect(game.sleeps.load(ordering: .relaxed) > 0)
    }
}
