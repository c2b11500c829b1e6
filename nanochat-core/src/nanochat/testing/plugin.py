"""The pytest plugin: the option that names the device, and what could not be checked here.

It is loaded in every pytest run of an environment with nanochat-core, so it imports nothing more.
"""

from __future__ import annotations

import sys

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("nanochat").addoption(
        "--nanochat-device",
        default="auto",
        metavar="NAME",
        help="device backend of conformance tests (default: the best one that a backend runs on)",
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    suites = sys.modules.get("nanochat.testing.suites")  # imported only where it is used
    refusals = config.stash.get(suites.REFUSALS, {}) if suites is not None else {}
    if refusals:
        terminalreporter.section("nanochat: not checked on this machine")
        for told in refusals:
            terminalreporter.line(told)
