import Testing
import WireProtocol

@Suite("status codes")
struct StatusCodeTests {
    @Test("every status has a name of its own, in lower case with hyphens")
    func names() {
        let names = StatusCode.allCases.map(\.name)
        #expect(Set(names).count == names.count)
        for name in names {
            #expect(name.wholeMatch(of: #/[a-z]+(-[a-z]+)*/#) != nil, "\(name)")
        }
        #expect(StatusCode.queueNotFound.name == "queue-not-found")
    }

    @Test("every status but ok has a class")
    func classes() {
        for status in StatusCode.allCases {
            #expect((status.errorClass == .none) == (status == .ok), "\(status)")
        }
    }

    @Test("what leaves a publish in doubt is said to")
    func outcomes() {
        let unknown = StatusCode.allCases.filter { $0.errorClass == .outcomeUnknown }
        #expect(unknown == [.producerUnknown, .storageFailed])
    }

    @Test("a durability level is found by its name")
    func levels() {
        for level in DurabilityLevel.allCases {
            #expect(DurabilityLevel(name: level.name) == level)
        }
        #expect(DurabilityLevel(name: "replicated") == nil)
        #expect(DurabilityLevel(name: "") == nil)
    }
}
