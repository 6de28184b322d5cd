/// Stops the process when `condition` is false, in every build, and says which invariant broke.
///
/// `precondition` in an optimised build traps without a word; a claim that must survive in
/// production uses this instead.
@inlinable @inline(__always)
public func invariant(
    _ condition: @autoclosure () -> Bool,
    _ message: @autoclosure () -> String,
    file: StaticString = #fileID,
    line: UInt = #line
) {
    if !condition() { invariantBroken(message(), file: file, line: line) }
}

/// Out of line and never inlined: the check costs one predictable branch at the call site.
@inline(never)
public func invariantBroken(_ message: String, file: StaticString, line: UInt) -> Never {
    fatalError("invariant broken: \(message)", file: file, line: line)
}
