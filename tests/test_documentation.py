"""What the documentation says is so: its pages are followed, its links lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documentation import follow
from tests.fixtures import ROOT

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add-a-rule.md"])
def test_the_page_can_be_followed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    assert follow(ROOT / "docs" / name, folder) >= 3
