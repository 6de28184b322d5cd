# Thin: each target is a line or two that could be typed by hand.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

SWIFT ?= swift
# Optimised everywhere, also for tests: a debug build is too slow for the long ones.
CONFIGURATION := -c release
PROGRAMS := .build/release
DATA_DIR ?= ./millrace-data

# Recordings for `make run`; without them a seeded generator writes the same formats.
FEED ?=
ORDERS ?=
# Options for `make serve`, e.g. ARGS="--cpus 0 --idle spin".
ARGS ?=
# Executions of each fuzz target, or seconds instead: make fuzz FUZZ_SECONDS=60.
FUZZ_RUNS ?= 10000000
FUZZ_SECONDS ?=
# How long a soak takes.
MINUTES ?= 30

.PHONY: help run serve build test torture soak fuzz sanitize bench format lint dependencies

help:      ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t14

run: dependencies ## set up what is missing, build, run the main job: make run [FEED=FILE ORDERS=FILE]
	$(SWIFT) build $(CONFIGURATION)
	$(PROGRAMS)/rehearsal $(if $(FEED),--feed "$(FEED)") $(if $(ORDERS),--orders "$(ORDERS)")

serve: dependencies ## a broker on the default ports with ./millrace-data, until ctrl-c [ARGS=…]
	$(SWIFT) build $(CONFIGURATION) --product brokerd
	exec $(PROGRAMS)/brokerd --data-dir $(DATA_DIR) $(ARGS)

build: dependencies ## optimised build of everything
	$(SWIFT) build $(CONFIGURATION)

test: dependencies ## set up what is missing, build, run all tests, fuzz for a minute each: what CI runs
	$(SWIFT) build $(CONFIGURATION) --build-tests
	$(SWIFT) test $(CONFIGURATION) --skip-build
	SWIFT=$(SWIFT) Tests/Fuzz/run.sh --seconds 60

torture: dependencies ## the long versions: 200 kills, 400 power cuts, 40 seeds of crash enumeration and 90 of several shards, 5000 without, every errno at every operation, 100,000 flips [FILTER=NAME]
	MILLRACE_TORTURE=1 $(SWIFT) test $(CONFIGURATION) --filter "$(or $(FILTER),Torture|CrashEnumeration|FaultEnumeration|LoopFault|ManySeeds|BitFlip)"

soak: dependencies ## everything at once for long, with kills and a full disk, and flat in the end: make soak [MINUTES=30]
	$(SWIFT) build $(CONFIGURATION) --build-tests
	MILLRACE_SOAK=$(MINUTES) $(SWIFT) test $(CONFIGURATION) --skip-build --filter SoakTests

fuzz:      ## libFuzzer targets, from the kept inputs: make fuzz [FUZZ_RUNS=n | FUZZ_SECONDS=n]
	SWIFT=$(SWIFT) Tests/Fuzz/run.sh $(if $(FUZZ_SECONDS),--seconds $(FUZZ_SECONDS),--runs $(FUZZ_RUNS))

sanitize: dependencies ## the tests under ThreadSanitizer, then under AddressSanitizer
	SWIFT=$(SWIFT) Tests/sanitize.sh thread address

bench: dependencies ## every row of the README's table, beside its baseline
	Bench/run.sh

format:    ## format in place
	$(SWIFT) format format --in-place --parallel --recursive Package.swift Broker Protocol Tests $(wildcard Bench)

lint:      ## formatting, imports and comments, no edits
	$(SWIFT) format lint --parallel --recursive Package.swift Broker Protocol Tests $(wildcard Bench)

dependencies:
	@ops/install-dependencies.sh
