package import ArgumentParser

/// The root: nouns, under which the verbs are.
package struct Brokerctl: ParsableCommand {
    package static var configuration: CommandConfiguration {
        CommandConfiguration(
            commandName: "brokerctl",
            abstract: "Look at and change a Millrace broker.",
            discussion: """
                Exit codes: 0 done, 1 the broker said no, 2 usage, 3 unreachable, 4 storage verify \
                found damage. With -o json standard output holds JSON and nothing else.

                Shell completion: brokerctl --generate-completion-script bash|zsh|fish

                Examples:
                  brokerctl queue create orders --partitions 8
                  brokerctl --server broker-1:7400 queue ls -o json
                """,
            subcommands: [
                Server.self, Shard.self, Storage.self, Backup.self, Queue.self, Group.self,
            ]
        )
    }

    @OptionGroup var global: GlobalOptions

    package init() {}
}

struct Server: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "The server itself.",
            subcommands: [Status.self]
        )
    }
}

struct Shard: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "Shards: threads on cores, each with partitions and a journal of its own.",
            subcommands: [List.self, Info.self]
        )
    }
}

struct Storage: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "What lies on disk, and whether it is as it was written.",
            subcommands: [Info.self, Verify.self]
        )
    }
}

struct Queue: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "Queues: named, partitioned logs of records.",
            subcommands: [
                Create.self, List.self, Info.self, Alter.self, Purge.self, Move.self, Remove.self,
                Publish.self,
                Consume.self,
            ]
        )
    }
}

struct Group: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "Groups: consumers that share progress through a queue.",
            subcommands: [List.self, Info.self]
        )
    }
}
