"""The commands. One thin module each; what they share is in `flags` and `main`."""
