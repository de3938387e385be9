"""Every reader of bytes from strangers, fuzzed: see `targets.TARGETS`."""
