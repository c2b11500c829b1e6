"""The commands, one module each: `parser()` and `run(options)`, which returns the exit status."""
