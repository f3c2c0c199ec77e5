"""The `tilus` command: compile ahead of time, look at what the compiler makes, profile, tune, draw layouts.

Exit codes: 0 for success, 1 for an error in a kernel or in what it is given, 2 for wrong use of the command.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from tilus.errors import TilusError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from tilus import __version__
    from tilus.cli import compile, doctor, inspect, layout, profile, tune

    parser = argparse.ArgumentParser(
        prog="tilus", description="Thread-block programs over tiles for NVIDIA GPUs."
    )
    parser.add_argument("--version", action="version", version=f"tilus {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (compile, inspect, profile, tune, layout, doctor):
        module.add_command(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Lines of the user's source are printed, also where the output's encoding lacks some of their characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"tilus {options.command}: {error}", file=sys.stderr)
        return 2
    except TilusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # Nothing more can be written, at exit either; the reader of a pipe, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"tilus {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class UsageError(Exception):
    """Wrong use of the command, such as a file that does not exist."""
