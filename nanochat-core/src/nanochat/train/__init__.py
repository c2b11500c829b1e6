"""Training: settings, the loop, checkpoints and records. Importing this imports no torch."""
