"""C and C++ projects to training documents."""

__version__ = "0.1.0"
