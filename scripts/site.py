"""What MkDocs needs beyond mkdocs.yml: pages that have their home elsewhere, and a look at what the site would fetch.

README, CHANGELOG and CONTRIBUTING are pages of the site without a copy of their text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
ICON = ROOT / "fer_scale/verbs/serve/page/icon.svg"
FETCHES = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="?canonical))[^>]*(?:src|href)="?https?://[^>]*>"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the icon that lie outside of docs/."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "assets/icon.svg", abs_src_path=str(ICON)))
    return files


def on_post_page(output: str, **_: Any) -> str:
    """Refuse a page that would make a reader's browser ask another host for anything."""
    if found := FETCHES.search(output):
        raise PluginError(f"a page fetches from another host: {found[0]}")
    return output
