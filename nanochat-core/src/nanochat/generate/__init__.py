"""Decoding: sampling text from a model, token by token."""
