"""`python -m nanochat_chunker`."""

from nanochat_chunker.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
