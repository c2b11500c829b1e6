"""nanochat: trains language models with kernels that are chosen, explained and proven.

Importing this package imports neither torch nor any plugin.
"""

from nanochat.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"
