"""The GPT, and nothing about hardware."""
