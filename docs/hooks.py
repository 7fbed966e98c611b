"""For mkdocs: pages that stand in the root of the repository, and links that lead there from any page."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
FILES = ("LICENSE", "CITATION.cff", "checkpoints/dr_grader.md", "checkpoints/inception_v3.md", "checkpoints/resnet50.md")


def on_files(files, config):
    """Add the root's pages, and the files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, **_):
    """Links between pages, as the site has them: docs/ is its root."""
    markdown = re.sub(r"(\]\(|src=\")docs/", r"\1", markdown)
    return re.sub(r"\]\(\.\./README\.md", "](index.md", markdown)
