internal import BrokerBasics

/// A market-data feed of one instrument, from a seed: best quotes, trades and depth updates with
/// the receiver's clock, in bursts.
///
/// Ids are gap-free per kind: every trade's `t` is one more than the last, every depth update's
/// `pu` is the `u` of the one before, and quotes' `u` only rise.
package struct FeedGenerator {
    private var random: SeededRandom
    private var receivedAt: UInt64 = 1_723_161_255_030_314_667
    private var updateID: UInt64 = 5_123_107_837_000
    private var lastDepthID: UInt64 = 5_123_107_831_937
    private var tradeID: UInt64 = 5_266_583_935
    /// The best bid in tenths.
    private var bid = 618_002
    private var bidSize = 2_507
    private var askSize = 2_510

    package init(seed: UInt64) { random = SeededRandom(seed: seed) }

    /// The next event.
    package mutating func line() -> String {
        receivedAt += UInt64(
            random.chance(1, in: 5) ? random.below(12_000_000) : random.below(9_000)
        )
        updateID += UInt64(1 + random.below(400))
        if random.chance(1, in: 30) { bid += random.below(3) - 1 }
        let dice = random.below(100)
        let object = dice < 70 ? quote() : dice < 93 ? trade() : depth()
        return "\(receivedAt) \(object)"
    }

    /// When the exchange says it happened, in ms.
    private var eventTime: UInt64 { receivedAt / 1_000_000 + 1_269 }

    private mutating func quote() -> String {
        if random.chance(1, in: 2) {
            bidSize = 1 + random.below(4_000)
        } else {
            askSize = 1 + random.below(4_000)
        }
        let time = eventTime
        return #"{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":\#(updateID),"#
            + #""s":"BTCUSDT","b":"\#(price(bid))","B":"\#(size(bidSize))","#
            + #""a":"\#(price(bid + 1))","A":"\#(size(askSize))","T":\#(time),"E":\#(time)}}"#
    }

    private mutating func trade() -> String {
        tradeID += 1
        let isSale = random.chance(1, in: 2)
        let time = eventTime
        return #"{"stream":"btcusdt@trade","data":{"e":"trade","E":\#(time),"T":\#(time),"#
            + #""s":"BTCUSDT","t":\#(tradeID),"p":"\#(price(isSale ? bid : bid + 1))","#
            + #""q":"\#(size(1 + random.below(900)))","X":"MARKET","m":\#(isSale)}}"#
    }

    private mutating func depth() -> String {
        let (first, previous) = (lastDepthID + 1 + UInt64(random.below(300)), lastDepthID)
        updateID = max(updateID, first) + UInt64(random.below(3_000))
        lastDepthID = updateID
        let time = eventTime
        return #"{"stream":"btcusdt@depth@0ms","data":{"e":"depthUpdate","E":\#(time),"#
            + #""T":\#(time),"s":"BTCUSDT","U":\#(first),"u":\#(updateID),"pu":\#(previous),"#
            + #""b":[\#(levels(below: true))],"a":[\#(levels(below: false))]}}"#
    }

    private mutating func levels(below: Bool) -> String {
        // A few levels as a rule, hundreds now and then: events of 40 kB occur.
        let count = random.chance(1, in: 60) ? 200 + random.below(700) : 2 + random.below(40)
        var level = below ? bid : bid + 1
        return (0..<count).map { _ in
            defer { level += (below ? -1 : 1) * (1 + random.below(30)) }
            let amount = random.chance(1, in: 4) ? 0 : random.below(3_000)
            return #"["\#(price(level))","\#(size(amount))"]"#
        }.joined(separator: ",")
    }

    private func price(_ tenths: Int) -> String { "\(tenths / 10).\(tenths % 10)0" }
    private func size(_ thousandths: Int) -> String {
        "\(thousandths / 1_000).\("\(thousandths % 1_000 + 1_000)".dropFirst())"
    }
}
