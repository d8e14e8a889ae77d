"""Settings files: found, extended, checked, shown; the schema that editors read says the same as the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from auditor import schema
from auditor.finding import Severity
from auditor.settings import Settings, SettingsError, load
from tests.cli import BAD, auditor
from tests.fixtures import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDITOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_nearest_file_of_three_names(folder: Path) -> None:
    write(folder / "pyproject.toml", "[tool.auditor]\nseed = 1\n")
    write(folder / "a/auditor.toml", "seed = 2\n")
    write(folder / "a/b/pyproject.toml", "[tool.other]\n")
    write(folder / "a/b/c/.auditor.toml", "seed = 3\n")
    write(folder / "a/b/c/auditor.toml", "seed = 4\n")
    write(folder / "a/b/c/pyproject.toml", "[tool.auditor]\nseed = 5\n")
    for place, seed in ((".", 1), ("a", 2), ("a/b", 2), ("a/b/c", 3)):
        assert load(folder / place).seed == seed, place


def test_extend(folder: Path) -> None:
    write(
        folder / "base/company.toml",
        'extend = "root.toml"\nselect = ["MOD"]\nextend-exclude = ["old"]\nrules = ["rules"]\nseed = 3\n'
        '[per-file-ignores]\n"a.py" = ["MOD001"]\n"b.py" = ["MOD001"]\n',
    )
    write(folder / "base/root.toml", 'fail-on = "info"\nseed = 2\n')
    write(
        folder / "work/pyproject.toml",
        '[tool.auditor]\nextend = "../base/company.toml"\nselect = ["DRP"]\nextend-exclude = ["new"]\n'
        '[tool.auditor.per-file-ignores]\n"b.py" = ["MOD004"]\n',
    )
    settings = load(folder / "work")
    assert settings.select == ("DRP",)
    assert settings.extend_exclude == ("old", "new")
    assert settings.per_file_ignores == {"a.py": ("MOD001",), "b.py": ("MOD004",)}
    assert settings.fail_on is Severity.INFO
    assert settings.seed == 3
    assert settings.rules == (str(folder / "base/rules"),)
    assert settings.root == folder / "work"


def test_what_cannot_be_extended(folder: Path) -> None:
    one = write(folder / "one.toml", 'extend = "two.toml"\n')
    write(folder / "two.toml", 'extend = "sub/../one.toml"\n')
    with pytest.raises(SettingsError, match=r"circle: .*one\.toml → .*two\.toml → .*one\.toml"):
        load(file=one)
    one.write_text('extend = "three.toml"\n')
    with pytest.raises(SettingsError, match=r"one\.toml: extend: there is no file .*three\.toml"):
        load(file=one)
    write(folder / "pyproject.toml", "[project]\n")
    one.write_text('extend = "pyproject.toml"\n')
    with pytest.raises(SettingsError, match=r"one\.toml extends it, but it has no \[tool\.auditor\]"):
        load(file=one)


WRONG = {
    'selekt = ["MOD"]': "unknown key 'selekt'.*did you mean 'select'",
    '[tool.auditor]\nselect = ["MOD"]': r"stand without \[tool\.auditor\]",
    'select = "MOD"': "select: expected list, found str 'MOD'",
    'ignore = [["MOD"]]': "ignore: expected str, found list",
    '[per-file-ignores]\n"a.py" = [4]': "per-file-ignores: expected str, found int 4",
    'fail-on = "fatal"': "fail-on: unknown severity 'fatal'",
    "seed = true": "seed: expected int, found bool True",
    "jobs = -1": "jobs: must be at least 0, found -1",
    "timeout = 0": "timeout: must be above 0, found 0.0",
    'dtype = "float8"': "dtype: 'float8' is none of float32",
    "[targets.Net]\nkwarg = {}": "targets: Net: unknown key 'kwarg'; did you mean 'kwargs'",
    "[targets.Net]\ninput = 3": "targets: expected str or list, found int 3",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_and_refused_by_the_schema(folder: Path, text: str) -> None:
    write(folder / "auditor.toml", text)
    result = auditor("check", ".")
    assert result.exit_code == 2
    assert re.search(WRONG[text], result.output), result.output
    assert "auditor.toml: " in result.output
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), schema.schema())


def test_every_file_has_the_settings_nearest_to_it(folder: Path) -> None:
    write(folder / "pyproject.toml", '[tool.auditor]\nselect = ["MOD"]\n')
    write(folder / "net.py", BAD)
    write(folder / "quiet/auditor.toml", 'ignore = ["MOD004"]\n')
    write(folder / "quiet/deep/net.py", BAD)
    write(folder / "loud/auditor.toml", 'extend-exclude = ["generated", "sub/old"]\n')
    for name in ("net.py", "generated/net.py", "sub/old/net.py", "sub/new/net.py"):
        write(folder / "loud" / name, BAD)
    expected = ["loud/net.py", "loud/sub/new/net.py", "net.py"]
    for paths in ((".",), ("net.py", "quiet", "loud"), ("loud", "quiet", "net.py")):
        found = json.loads(auditor("check", *paths, "--output-format", "json").output)
        assert [item["filename"] for item in found] == expected
    found = json.loads(auditor("check", ".", "--output-format", "json", "--ignore", "MOD004").output)
    assert found == []
    found = json.loads(auditor("check", ".", "--output-format", "json", "--config", "pyproject.toml").output)
    assert len(found) == 6
    text = auditor("check", "-", "--stdin-filename", "quiet/net.py", stdin=BAD)
    assert text.exit_code == 0, text.output


def test_exclusions_count_from_the_settings_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "auditor.toml", 'extend-exclude = ["src/old"]\n[per-file-ignores]\n"src/legacy/*" = ["MOD004"]\n')
    for name in ("old/net.py", "legacy/net.py", "new/net.py"):
        write(folder / "src" / name, BAD)
    monkeypatch.chdir(folder / "src")
    found = json.loads(auditor("check", "--output-format", "json").output)
    assert [item["filename"] for item in found] == ["new/net.py"]
    assert json.loads(auditor("check", "old/net.py", "--output-format", "json", "--force-exclude").output) == []


def test_config_shows_settings_and_files(folder: Path) -> None:
    write(folder / "auditor.toml", "seed = 1\n")
    write(folder / "sub/auditor.toml", 'seed = 2\nextend-exclude = ["b.py"]\n')
    for name in ("a.py", "sub/a.py", "sub/b.py", "build/c.py"):
        write(folder / name, BAD)
    shown = auditor("config").output
    assert tomllib.loads(shown)["tool"]["auditor"]["seed"] == 1
    assert "seed = 2" in auditor("config", "sub/a.py").output
    assert auditor("config", "--show-files").output.splitlines() == ["a.py", "sub/a.py"]
    assert auditor("config", "--show-files", "sub/b.py").output == "sub/b.py\n"
    missing = auditor("config", "--show-files", "nowhere", "sub")
    assert (missing.exit_code, missing.output) == (2, "sub/a.py\nnowhere: no such file or folder\n")


# The schema ----------------------------------------------------------------------------------------------------------


def test_the_shipped_schema_is_in_step() -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), "run `make schema`"
    jsonschema.Draft7Validator.check_schema(schema.schema())


def test_the_schema_knows_every_default() -> None:
    for key, entry in schema.schema()["properties"].items():
        if "default" in entry:
            jsonschema.validate(entry["default"], entry)
            value = getattr(Settings(), key.replace("-", "_"))
            assert entry["default"] == (str(value) if key == "fail-on" else list(value) if "items" in entry else value)


def test_examples_of_the_documentation_are_valid(folder: Path) -> None:
    """Every TOML block of the documentation with our settings in it passes the schema and loads."""
    seen = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            table = tomllib.loads(block)
            settings = table["tool"].get("auditor") if "tool" in table else table
            if settings is None or "project" in settings:
                continue
            jsonschema.validate(settings, schema.schema())
            settings.pop("extend", None)
            load(file=write(folder / "pyproject.toml", re.sub(r"(?m)^extend = .*\n", "", block)))
            seen += 1
    assert seen >= 2


def test_config_prints_the_schema() -> None:
    command = [sys.executable, "-m", "auditor", "config", "--schema"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout) == schema.schema()
