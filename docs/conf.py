"""Sphinx: ``python tools/check.py docs`` builds the pages and runs the examples in them."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

project = "wfpioctl"
author = "The wfpioctl developers"
copyright = "the wfpioctl developers"
release = installed_version("wfpioctl")
version = release.partition("+")[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "measured"]  # what performance.md includes

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Names in signatures that have no page of their own.
nitpick_ignore_regex = [
    ("py:.*", r"(collections(\.abc)?|typing|types|socket|asyncio|enum|_typeshed|contextlib)\..*"),
    (
        "py:.*",
        r"(EllipsisType|HasFileno|ReadableBuffer|WriteableBuffer|Address|Any|Self|TracebackType)",
    ),
    ("py:class", r"(int|str|bytes|bool|float|None|tuple|list|dict|object|optional|type)"),
    ("py:.*", r"wfpioctl\..*"),
    ("py:.*", r"[A-Z_]\w*"),
]

doctest_global_setup = """
import asyncio, socket, struct, threading
import wfpioctl
from wfpioctl import simulator
"""
doctest_test_doctest_blocks = ""
trim_doctest_flags = True

html_theme = "furo"
html_title = f"wfpioctl {version}"
html_static_path = ["_static"]
html_css_files = ["wfpioctl.css"]
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def tests_by_fact() -> dict[str, list[str]]:
    """The test suite's tests of each numbered fact: {"W13": ["test_growth: W13_W15_...", ...]}."""
    tests: dict[str, list[str]] = {}
    for file in sorted(Path(__file__).parent.parent.glob("tests/test_*.py")):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"def test_((?:W\d\d_)+\w+)", text):
            for fact in re.findall(r"W\d\d(?=_)", name):
                tests.setdefault(fact, []).append(f"{file.stem}: {name}")
    return tests


def list_tests(app: Sphinx, page: str, source: list[str]) -> None:
    """In the behaviour tables, put the tests of its number where a row says "@"."""
    if page != "behaviour":
        return
    tests = tests_by_fact()

    def fill_in(row: re.Match[str]) -> str:
        found = tests.get(row["fact"], [])
        if not found:
            logging.getLogger(__name__).warning("no test of %s", row["fact"], location=page)
        waiting = sum(name.startswith("test_kernel") for name in found)
        summary = f"{len(found)} test{'s' if len(found) != 1 else ''}"
        if waiting:
            summary += f", {waiting} for a kernel"
        names = "<br>".join(f"<code>{name}</code>" for name in found)
        return f"{row['before']}<details><summary>{summary}</summary>{names}</details>"

    filled = re.sub(r"(?m)^(?P<before>\| (?P<fact>W\d\d) \|.*\| )@", fill_in, source[0])
    source[0] = re.sub(r"(?m)^\| (W\d\d)", r'| <span id="\1">\1</span>', filled)


def link_facts(app: Sphinx, *args: Any) -> None:
    """Let the numbers of facts in docstrings lead to the behaviour tables."""
    lines: list[str] = args[-1]
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"\b(W\d\d)\b", r"`\1 <../behaviour.html#\1>`__", line)


def shorten(app: Sphinx, what: str, name: str, *args: Any) -> tuple[str | None, Any] | None:
    """No parameters for the errors that callers only catch; short names of types elsewhere."""
    *_, signature, returns = args
    if not signature:
        return None
    if what == "exception" and name != "wfpioctl.RedirectError":
        return "", None
    return re.sub(r"~(collections|typing|wfpioctl)\.([a-z]\w*\.)*", "", signature), returns


def skip_fields(app: Sphinx, what: str, name: str, thing: Any, *args: Any) -> bool | None:
    """The fields of named tuples are told in the class's docstring."""
    return True if str(thing.__doc__).startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", list_tests)
    app.connect("autodoc-process-docstring", link_facts)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip_fields)
