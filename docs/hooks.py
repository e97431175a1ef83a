"""A MkDocs hook that adds the rule pages, which ship with the package, to the documentation."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = Path(__file__).parent.parent / "pytest_evalmode" / "rules" / "pages"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page in sorted(PAGES.glob("*.md")):
        files.append(File.generated(config, f"rules/{page.name}", abs_src_path=str(page)))
    return files
