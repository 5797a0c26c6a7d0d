"""The documents as a site: `make docs`. Its source is the repository, so that every link is good there and here.

Pages are Markdown as it is read in the repository: nothing in them is Sphinx's, but in docs/api.md. The README is the
home page; what lies at the side is NAVIGATION.
"""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from pygments.lexers.python import PythonLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]

# Caption -> pages. A page that is in none of them comes under the last one; a page that is not there is left out.
NAVIGATION = {
    "Start": [
        "docs/quickstart",
        "docs/your_environment",
        "docs/how_it_works",
        "docs/configuring",
        "docs/configurations",
        "examples/README",
    ],
    "Learning": [
        "docs/memory",
        "docs/offline_data",
        "docs/goals",
        "docs/environments",
        "docs/extending",
        "docs/using_a_policy",
    ],
    "Running": [
        "docs/watching",
        "docs/board",
        "docs/metrics",
        "docs/clusters",
        "cluster/README",
        "docs/sweeps",
        "docs/failures",
        "docs/errors",
        "docs/performance",
        "benchmarks/README",
        "docs/results",
    ],
    "Coming from": ["docs/amago", "docs/stable_baselines3", "docs/rllib"],
    "Reference": ["docs/settings", "docs/commands", "docs/api", "docs/troubleshooting"],
    "Decisions": [
        "docs/decisions/1-row-tables",
        "docs/decisions/2-preadv",
        "docs/decisions/3-commits",
        "docs/decisions/4-no-detached-actors",
        "docs/decisions/5-gin",
    ],
    "Project": ["docs/limits", "docs/architecture", "CONTRIBUTING", "CHANGELOG", "docs/reports"],
}
TITLES = {"cluster/README": "Clusters, step by step", "benchmarks/README": "Benchmarks, and all figures"}
DIRECTORIES = ("docs", "cluster", "benchmarks", "examples", "results")

project = "amago_ray"
author = "the authors of amago_ray"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", *(f"{folder}/**.md" for folder in DIRECTORIES)]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "amago_ray", "configs", "docker", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "amago_ray"
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100


class Markdown(SphinxDirective):
    """Docstrings are Markdown, as the pages are, and autodoc reads reStructuredText: this stands around one."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


def parameters(thing: Any) -> list[str]:
    try:
        return list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):  # a module, a constant
        return []


def as_markdown(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Put a docstring into the directive. What it says of parameters, "name: meaning", becomes a list."""
    text = re.sub(r"(?m)^(?=Raises )", "\n", "\n".join(lines))
    if known := "|".join(map(re.escape, parameters(thing))):
        text = re.sub(rf"(?:^|(?<=\. )|(?<=\n))((?:{known})(?:, (?:{known}))*): (?=\S)", r"\n* `\1`: ", text)
    lines[:] = [".. markdown::", "", *(f"   {line}" for line in text.splitlines()), ""]


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """At the end of the home page, where it is not seen: what lies at the side of every page.

    With the tag "pages", which a test builds with, the API stays empty: reading all docstrings takes most of the time.
    """
    if page == "docs/api" and app.tags.has("pages"):
        source[0] = re.sub(r"(?s)```{eval-rst}.*?```", "", source[0])
    if page != root_doc:
        return
    found = app.env.found_docs - {root_doc}
    listed = {name for names in NAVIGATION.values() for name in names}
    for caption, names in NAVIGATION.items():
        more = sorted(found - listed) if caption == list(NAVIGATION)[-1] else []
        entries = "\n".join(f"{TITLES[x]} <{x}>" if x in TITLES else x for x in [*names, *more] if x in found)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def make_index(app: Sphinx, error: Exception | None) -> None:
    """A web server looks for index.html."""
    if error is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.add_lexer("gin", PythonLexer)
    app.add_directive("markdown", Markdown)
    app.connect("autodoc-process-docstring", as_markdown)
    app.connect("source-read", add_navigation)
    app.connect("build-finished", make_index)
