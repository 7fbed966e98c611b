"""For mkdocs: pages that stand in the root of the repository, and links that lead there."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")


def on_files(files, config):
    """Add the README as the home page, the root's other pages, and the cards of the embedded networks."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text(encoding="utf-8")))
    for path in (*map(ROOT.joinpath, BESIDE), *(ROOT / "checkpoints").glob("*.*")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **_):
    """Links as the site has them, where docs/ is the root."""
    markdown = re.sub(r"(\]\(|src=\")(docs|\.\.(?=/(checkpoints|README)))/", r"\1", markdown)
    return markdown.replace("](README.md)", "](index.md)")
