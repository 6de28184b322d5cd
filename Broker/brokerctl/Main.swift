internal import Glibc

@main
enum Main {
    static func main() {
        // A reader that has gone is an error of write(2), which says so, and not a signal.
        signal(SIGPIPE, SIG_IGN)
        exit(ControlTool.run(Array(CommandLine.arguments.dropFirst())))
    }
}
