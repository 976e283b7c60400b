"""docs/methods.md and the code name each other: titles that are cited exist, and so do the files it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hf_lineage

PACKAGE = Path(hf_lineage.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def cited(text: str) -> set[str]:
    """The titles that follow a mention of the page in one paragraph: docs/methods.md, *One* and *Other*."""
    found = set()
    for mention in re.findall(r"docs/methods\.md((?:,| and|\s|\*[^*]+\*|`)*)", text):
        found |= {" ".join(title.split()) for title in re.findall(r"\*([^*]+)\*", mention)}
    return found


def test_cited_titles_exist() -> None:
    titles = {title for text in SOURCES.values() for title in cited(text)}
    assert len(titles) > 10 and titles <= SECTIONS.keys()


def test_no_page_outside_the_repository_is_cited() -> None:
    assert not [path for path, text in SOURCES.items() if re.search(r"METHODS\s+§|DESIGN\s+§|/work/shared", text)]


@pytest.mark.parametrize("title", SECTIONS)
class TestEverySection:
    def test_the_files_it_names_exist(self, title: str) -> None:
        files = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|json))`", SECTIONS[title])
        roots = (PACKAGE, PACKAGE.parent)
        assert files and all(any((root / name).is_file() for root in roots) for name in files), files

    def test_it_says_what_verifies_it(self, title: str) -> None:
        assert "*Verified*" in SECTIONS[title] and "`tests/" in SECTIONS[title]


def test_mentions_are_found() -> None:
    assert cited("See docs/methods.md, *Mixing\nweights* and *Sparse merges*.") == {"Mixing weights", "Sparse merges"}
