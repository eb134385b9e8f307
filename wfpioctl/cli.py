"""The command line: ``wfpioctl`` or ``python -m wfpioctl``.  Each verb has a module of its own."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

VERBS = {
    "demo": "show an app, two vendors' proxies and an origin, on real connections",
    "check": "say what this system answers to each IOCTL",
    "relay": "relay redirected connections to where they were going",
}
"""Verb to summary.  The verb's module, of the same name, has add_arguments() and run()."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; wrong usage exits with 2."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="wfpioctl",
        description="The Windows Filtering Platform's connection redirect IOCTLs for Python.",
        epilog="'wfpioctl VERB --help' tells more of each verb.",
    )
    parser.add_argument("--version", action="version", version=f"wfpioctl {version('wfpioctl')}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        subparser = subparsers.add_parser(verb, help=summary)
        if verb in arguments[:1]:  # the other verbs' modules are not even imported
            module = importlib.import_module(f".{verb}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return int(options.run(options))
