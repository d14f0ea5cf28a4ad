"""What the site has beside the pages of this folder, and what reads differently there: a hook of MkDocs (`make docs`)."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Pages of the repository's root, and what they are called on the site."""
REFERENCE = {
    "a3jax": "Models and texts",
    "a3jax.config": "Experiments",
    "a3jax.curriculum": "Curricula",
    "a3jax.sweep": "Sweeps",
}
"""Packages whose public names are told, each from its docstring."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, whose links lead elsewhere from here, and the reference."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text()
        text = text.replace("](docs/", "](").replace("](README.md", "](index.md")
        text = re.sub(r"\[([^\]]+)\]\((?:experiments|launch)/\)", r"`\1`", text)  # folders, which the site does not have
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def _reference() -> str:
    parts = ["# Reference\n\nEvery public name, as its docstring tells it. Functions and classes of one part stand together."]
    for package, title in REFERENCE.items():
        parts += [f"## {title}: `{package}`", *(f"::: {package}.{name}" for name in _names(package))]
    return "\n\n".join(parts) + "\n"


def _names(package: str) -> list[str]:
    """`__all__` of a package, read and not run: what it imports need not be there."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(assigned["__all__"])
