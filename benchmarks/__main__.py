"""The command line: python -m benchmarks [topic ...], or python -m benchmarks instructions."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import instructions, report
from .rows import Row, Settings, Unavailable

TOPICS = ("binding", "threads", "asynchronous", "engine", "imports", "memory", "relay")


def rows_of(topic: str) -> list[Row]:
    rows: list[Row] = importlib.import_module(f"{__package__}.{topic}").ROWS
    return rows


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    top.add_argument(
        "topics",
        nargs="*",
        metavar="topic",
        help=f"{', '.join(TOPICS)} (default: all of these), or instructions",
    )
    top.add_argument("--quick", action="store_true", help="fewer rounds")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    top.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table as Markdown; - prints it"
    )
    top.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots as SVG")
    top.add_argument(
        "--check", action="store_true", help="instructions: fail if a call exceeds its budget"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.topics == ["instructions"]:
        return count_instructions(options.check)
    if unknown := set(options.topics) - {*TOPICS}:
        parser().error(f"no such topic: {', '.join(sorted(unknown))}")
    settings = Settings(quick=options.quick)
    results = []
    for topic in options.topics or TOPICS:
        for row in rows_of(topic):
            print(f"measuring: {row.title}", file=sys.stderr, flush=True)
            results.append(report.measure(row, settings))
    surroundings = report.environment(settings)
    report.print_table(results)
    for name, value in surroundings.items():
        print(f"{name}: {value}")
    if options.json:
        text = json.dumps(report.as_json(results, surroundings), indent=1)
        options.json.write_text(text + "\n")
    if options.markdown:
        table = report.markdown(results, surroundings)
        if str(options.markdown) == "-":
            print(table)
        else:
            options.markdown.write_text(table)
    if options.plots:
        from . import plots

        for file in plots.save(results, options.plots):
            print(file)
    return 0


def count_instructions(check: bool) -> int:
    """Print instructions a call, and compare with the budget."""
    try:
        exceeded = instructions.compare()
    except Unavailable as reason:
        print(f"not run: {reason}")
        return 2 if check else 0
    return 1 if exceeded and check else 0


if __name__ == "__main__":
    sys.exit(main())
