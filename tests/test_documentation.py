"""What the documentation says is so: its pages are followed, the site is built, its links lead somewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from auditor import DOCUMENTATION
from auditor.report.catalogue import markdown, url
from auditor.schema import descriptions
from tests.documentation import blocks, follow
from tests.fixtures import BY_CODE, ROOT, RULES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add-a-rule.md", "tutorial.md"])
def test_the_page_can_be_followed(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    assert follow(ROOT / "docs" / name, folder) >= 5


@pytest.mark.slow
def test_the_site_has_a_page_for_every_rule_and_setting(tmp_path: Path) -> None:
    """It is built strictly: a link that leads nowhere fails. Reports link to its pages by `url`."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in RULES:
        page = tmp_path / "site" / url(rule).removeprefix(DOCUMENTATION + "/") / "index.html"
        assert f"{rule.name} ({rule.code})" in page.read_text(encoding="utf-8"), rule.name
    settings = (tmp_path / "site/settings/index.html").read_text(encoding="utf-8")
    assert [key for key in descriptions() if f'id="{key}"' not in settings] == []
    index = (tmp_path / "site/rules/index.html").read_text(encoding="utf-8")
    assert [rule.code for rule in RULES if f"<td>{rule.code}</td>" not in index] == []


def test_examples_become_code_blocks() -> None:
    text = markdown(BY_CODE["MOD004"])
    assert "## Example\n```python\nclass Net(nn.Module):\n    def forward(self, x):\n" in text
    assert text.count("```") == 4
    for rule in RULES:
        assert markdown(rule).count("```") % 2 == 0, rule.name


def test_the_readme_leads_to_every_guide() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme] == []


def test_settings_of_editors_are_valid_json() -> None:
    texts = [text for language, text in blocks(ROOT / "docs/editors.md") if language == "json"]
    assert [json.loads(text)["glspc.server.commandArguments"] for text in texts] == [["server"]]
