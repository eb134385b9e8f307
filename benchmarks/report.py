"""What was found: a table for people, JSON for programs, Markdown for the documentation."""

import datetime
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .rows import Finding, Row, Settings, Unavailable

ROOT = Path(__file__).parent.parent
COMMIT = "WFPIOCTL_BENCHMARKS_COMMIT"  # under Wine there is no git


@dataclass(slots=True)
class Result:
    """One row's findings, and the reasons for what is not there."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    unavailable: list[str] = field(default_factory=list)


def measure(row: Row, settings: Settings) -> Result:
    result = Result(row.title)
    try:
        for each in row.measure(settings):
            if isinstance(each, Finding):
                result.findings.append(each)
            else:
                result.unavailable.append(str(each))
    except Unavailable as reason:
        result.unavailable.append(str(reason))
    return result


def number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def cells(finding: Finding) -> tuple[str, str, str, str]:
    """What, value, spread, goal: as text."""
    unit = f" {finding.unit}".rstrip()
    spread = f"{number(finding.low)} to {number(finding.high)}"
    goal = ""
    if finding.goal is not None:
        sign = ">=" if finding.goal.at_least else "<="
        verdict = "met" if finding.goal.is_met(finding.value) else "MISSED"
        goal = f"{sign} {finding.goal.bound:g}{unit}: {verdict}"
    return (
        finding.what,
        f"{number(finding.value)}{unit}",
        "" if finding.low == finding.high else spread,
        goal,
    )


def print_table(results: Iterable[Result]) -> None:
    """Print with rich where it is, else plainly."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for result in results:
            print(result.title)
            for each in result.findings:
                print("   {:50} {:>12} {:>22}  {}".format(*cells(each)))
            for reason in result.unavailable:
                print(f"   not run: {reason}")
        return
    table = Table("what", "value", "quartiles", "goal", title="wfpioctl")
    table.columns[1].justify = table.columns[2].justify = "right"
    for result in results:
        table.add_section()
        table.add_row(f"[bold]{result.title}[/]")
        for each in result.findings:
            what, value, spread, goal = cells(each)
            colour = "red" if "MISSED" in goal else "green"
            table.add_row(f"  {what}", value, spread, f"[{colour}]{goal}[/]" if goal else "")
        for reason in result.unavailable:
            table.add_row(f"  [yellow]not run: {reason}[/]")
    Console().print(table)


def markdown(results: Iterable[Result], surroundings: dict[str, Any]) -> str:
    lines = [f"- {name}: {value}" for name, value in surroundings.items()]
    lines += ["", "| what | value | quartiles | goal |", "|---|---:|---:|---|"]
    for result in results:
        lines.append(f"| **{result.title}** | | | |")
        lines += ["| " + " | ".join(cells(each)) + " |" for each in result.findings]
        lines += [f"| not run: {reason} | | | |" for reason in result.unavailable]
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[Result], surroundings: dict[str, Any]) -> dict[str, Any]:
    return {"environment": surroundings, "rows": [asdict(result) for result in results]}


def environment(settings: Settings) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": os.environ.get(COMMIT) or commit(),
        "mode": "quick" if settings.quick else "full",
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.python_compiler()}, {sysconfig.get_config_var('OPT') or 'official build'}",
        "system": _system(),
        "processor": f"{_processor()}, {os.cpu_count()} seen",
    }


def _system() -> str:
    if sys.platform == "win32":
        return f"Windows {platform.version()}{' (Wine)' if 'WINEPREFIX' in os.environ else ''}"
    return platform.platform()


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    except OSError:
        pass
    return platform.processor() or platform.machine()
