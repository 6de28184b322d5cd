internal import BrokerBasics

/// Order events of one stock in the LOBSTER format, from a seed: a book is kept, so every
/// execution and deletion is of an order that stands.
package struct OrderGenerator {
    private struct Order {
        var id: UInt64
        var shares: Int
        var price: Int
        var isBuy: Bool
    }

    private var random: SeededRandom
    private var nanoseconds: UInt64 = 34_200 * 1_000_000_000
    private var nextID: UInt64 = 16_113_575
    /// The best bid in ten-thousandths; the best ask is a tick or more above.
    private var bid = 5_853_300
    private var standing: [Order] = []

    package init(seed: UInt64) { random = SeededRandom(seed: seed) }

    /// The next event.
    package mutating func line() -> String {
        // Bursts of events within microseconds, then a pause.
        nanoseconds += UInt64(
            random.chance(1, in: 4) ? random.below(40_000_000) : 800 + random.below(60_000)
        )
        let dice = random.below(100)
        if standing.count < 20 || dice < 47 { return add() }
        let place = random.below(standing.count)
        switch dice {
        case ..<84:
            let order = standing.remove(at: place)
            return event(3, order.id, order.shares, order.price, order.isBuy)
        case ..<87 where standing[place].shares > 1:
            return reduce(place, type: 2)
        case ..<94:
            return reduce(place, type: 4)
        default:
            // Hidden orders have ids that were never shown.
            let price = bid + 100 * random.below(20)
            let id = 1_000_000 + UInt64(random.below(4_000_000))
            return event(5, id, 1 + random.below(100), price, random.chance(1, in: 2))
        }
    }

    private mutating func add() -> String {
        nextID += UInt64(1 + random.below(60))
        if random.chance(1, in: 50) { bid += 100 * (random.below(5) - 2) }
        let isBuy = random.chance(1, in: 2)
        let away = 100 * random.below(60)
        let order = Order(
            id: nextID,
            shares: random.chance(2, in: 3) ? 100 : 1 + random.below(400),
            price: isBuy ? bid - away : bid + 100 + away,
            isBuy: isBuy
        )
        standing.append(order)
        // The oldest stay, as they do far from the price; memory stays bounded.
        if standing.count > 2_000 { standing.removeLast() }
        return event(1, order.id, order.shares, order.price, order.isBuy)
    }

    /// A part of the order goes, or all of it: by its owner (2) or by a trade (4).
    private mutating func reduce(_ place: Int, type: Int) -> String {
        let order = standing[place]
        let part = type == 2 ? 1 + random.below(order.shares - 1) : 1 + random.below(order.shares)
        standing[place].shares -= part
        if standing[place].shares == 0 { standing.remove(at: place) }
        return event(type, order.id, part, order.price, order.isBuy)
    }

    private func event(
        _ type: Int,
        _ id: UInt64,
        _ shares: Int,
        _ price: Int,
        _ isBuy: Bool
    ) -> String {
        let seconds = nanoseconds / 1_000_000_000
        var fraction = "\(nanoseconds % 1_000_000_000 + 1_000_000_000)".dropFirst()
        // Recordings leave out the zeros at the end.
        while fraction.hasSuffix("0"), fraction.count > 1 { fraction.removeLast() }
        return "\(seconds).\(fraction),\(type),\(id),\(shares),\(price),\(isBuy ? 1 : -1)"
    }
}
