"""The site's settings, for Sphinx: `make site`.

The project's folder is the source, so that pages link to each other as they do on disk.
"""

import base64
import json
from importlib import metadata
from pathlib import Path

project, author = "rsslib", "the authors of rsslib"
version = release = metadata.version("rsslib")
html_title = "rsslib"

extensions = ["myst_nb", "sphinx.ext.autodoc"]
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "benchmarks/RESULTS.md", "data/README.md",
    "tests/LONG.md", "notebooks/examples/**.ipynb", "figures/quick/notebooks/**.ipynb",
    "figures/paper/notebooks/**.ipynb",
]  # fmt: skip
exclude_patterns = [".*", "build", "data/results", "data/downloads", "notebooks/*.ipynb", "rsslib", "gpu-day"]
root_doc = "docs/index"

# Markdown and notebooks, which were executed before.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # so that links to figures in what cells write lead somewhere
myst_heading_anchors = 3

# The docstrings are plain text with names in backticks.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"

html_theme = "furo"
html_favicon = "icon.svg"
templates_path = ["_templates"]
html_static_path, html_css_files = ["_static"], ["site.css"]
html_additional_pages = {"index": "front.html"}
html_copy_source = html_show_sphinx = html_domain_indices = False


def pictures(app, name, source):
    """Give a notebook's images the text that `figures.populations.show` left beside them, and widgets a picture."""
    path = Path(app.env.doc2path(name))
    if path.suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            alternative = output.get("metadata", {}).get("image/png", {}).get("alt")
            if "Explorer(" in "".join(output.get("data", {}).get("text/plain", "")):
                picture = Path(app.srcdir, "figures", "explore.png").read_bytes()
                output["data"] = {"image/png": base64.b64encode(picture).decode()}
                alternative = "The explorer in JupyterLab: controls for two subnets, their layers, sizes and accuracies"
            if alternative:
                cell["metadata"]["mystnb"] = {"image": {"alt": alternative}}
    notebook["metadata"].pop("widgets", None)
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("source-read", pictures)
