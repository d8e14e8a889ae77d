"""A user's own rules: begun, tested, applied, and never in the way of the others when they are broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from auditor import loader, scaffold
from tests.cli import BAD, auditor
from tests.fixtures import BY_CODE, ROOT
from tests.test_rule_style import HEADINGS

PRINTING = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        print(x)
        return self.fc(x)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one rule of its own, as `auditor new-rule` leaves it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDITOR_CACHE_DIR", str(tmp_path / "cache"))
    loader.load.cache_clear()
    (tmp_path / "auditor.toml").write_text('rules = ["own"]\n')
    scaffold.write("print-in-forward", tmp_path / "own", None, loader.load_rules())
    (tmp_path / "net.py").write_text(PRINTING)
    return tmp_path


def found(result: Result) -> list[tuple[str | None, str, int]]:
    return [(item["code"], item["filename"], item["location"]["row"]) for item in json.loads(result.output)]


def check(*arguments: str) -> Result:
    loader.load.cache_clear()
    return auditor("check", "net.py", *arguments)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for module in [name for name in sys.modules if name.startswith(loader.USER_PACKAGE)]:
        del sys.modules[module]


# Begun and tested ----------------------------------------------------------------------------------------------------


def test_a_new_rule_passes_its_tests_and_is_applied(folder: Path) -> None:
    result = auditor("test-rules")
    assert (result.exit_code, result.output) == (0, "USR001 print-in-forward: 3 fixtures, passed\n1 rule tested.\n")
    assert found(check("--output-format", "json")) == [("USR001", "net.py", 10)]
    assert check("--select", "USR", "--fix").exit_code == 0
    assert "print" not in (folder / "net.py").read_text()
    assert "USR001  print-in-forward" in auditor("rules").output
    explained = auditor("rule", "print-in-forward").output
    assert [line[3:] for line in explained.splitlines() if line.startswith("## ")][:6] == HEADINGS
    (folder / "net.py").write_text(PRINTING)
    assert "USR001 fix proven" in auditor("audit", "net.py", "--select", "USR", "--fix").output


def test_new_rule_takes_the_next_code_and_never_overwrites(folder: Path) -> None:
    result = auditor("new-rule", "second_rule")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "own/second_rule.py"
    assert "Add `rules" not in result.output
    assert 'code="USR002"' in (folder / "own/second_rule.py").read_text()
    loader.load.cache_clear()
    for arguments, reason in (
        (("new-rule", "second-rule"), "clashes with USR002 second-rule"),
        (("new-rule", "missing-eval"), "clashes with MOD001 missing-eval"),
        (("new-rule", "third-rule", "--code", "MOD001"), "clashes with MOD001"),
        (("new-rule", "third-rule", "--code", "mod1"), "is no code"),
        (("new-rule", "Third"), "is no name"),
        (("new-rule", "../third-rule"), "is no name"),
    ):
        result = auditor(*arguments)
        assert result.exit_code == 2, result.output
        assert reason in result.output
    (folder / "own/fixtures/third_rule").mkdir()
    (folder / "own/fixtures/third_rule/bad.py").write_text("mine")
    result = auditor("new-rule", "third-rule")
    assert (result.exit_code, "exists already" in result.output) == (2, True)
    assert not (folder / "own/third_rule.py").exists()


WRONG = {
    "a hit that is not expected": ("good.py", "self.print(y)", "print(y)", "finds USR001, which is not expected"),
    "a miss": ("good.py", "self.print(y)", "pass  # expect: USR001", "USR001 is expected, but"),
    "an unknown code": ("good.py", "self.print(y)", "pass  # expect: XYZ123", "expects 'XYZ123', which is no rule"),
    "another text": ("fixed.py", "nn.Linear(8, 4)", "nn.Linear(8, 5)", "makes something else of it"),
    "no expectation": ("bad.py", "# expect: USR001", "", "must have a line with `# expect: USR001`"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_failing_fixture_is_told(folder: Path, wrong: str) -> None:
    name, old, new, message = WRONG[wrong]
    edit(folder / "own/fixtures/print_in_forward" / name, old, new)
    result = auditor("test-rules")
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert result.output.endswith("1 rule tested, 1 failed.\n")


def test_a_rule_without_near_misses_or_with_careless_claims_fails(folder: Path) -> None:
    (folder / "own/fixtures/print_in_forward/good.py").unlink()
    assert "has no good*.py" in auditor("test-rules").output
    edit(folder / "own/print_in_forward.py", ', outputs(mode="train"), outputs(mode="eval")', "")
    loader.load.cache_clear()
    assert "accept a fix that spoils the model" in auditor("test-rules").output


def test_built_in_rules_can_be_tested_the_same_way() -> None:
    result = auditor("test-rules", str(ROOT / "rules/loss"))
    assert result.exit_code == 0, result.output
    assert "LOS001 softmax-before-cross-entropy" in result.output


def test_nothing_to_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "name a folder of rules" in auditor("test-rules").output
    missing = auditor("test-rules", "nowhere")
    assert (missing.exit_code, "no such folder of rules" in missing.output) == (2, True)


# Broken --------------------------------------------------------------------------------------------------------------

BROKEN = {
    "rule = Rule(": ("rule == Rule(", "this rule cannot be used: NameError: name 'rule' is not defined", True),
    '"USR001"': ('"usr1"', "'usr1' is no code", True),
    "    code=": ("    kode=", "TypeError", True),
    "def prints(": ("def prints(:", "SyntaxError", True),
    'yield rule.finding(call, "': ('yield 1 / 0, (call, "', "USR001 print-in-forward failed: ZeroDivisionError", False),
    "call = source.node_at": ("call = source.nod_at", "USR001 print-in-forward failed: AttributeError", False),
    "from __future__": ("raise SystemExit(3)\nfrom __future__", "SyntaxError", True),
    "import ast\n": ("import ast\nraise SystemExit(3)\n", "SystemExit: 3", True),
}


@pytest.mark.parametrize("old", BROKEN)
def test_a_broken_rule_is_named_and_the_rest_is_checked(folder: Path, old: str) -> None:
    new, message, at_loading = BROKEN[old]
    edit(folder / "own/print_in_forward.py", old, new)
    (folder / "net.py").write_text(PRINTING + "\n" + BAD)
    result = check("--select", "ALL", "--output-format", "json")
    assert result.exit_code == 2
    places = found(result)
    assert "MOD004" in {code for code, _, _ in places}
    problems = [item for item in json.loads(result.output) if item["code"] is None]
    assert any(message in item["message"] for item in problems), problems
    if at_loading:
        assert {item["filename"] for item in problems} == {"own/print_in_forward.py"}
        listed = auditor("rules")
        assert message in listed.output
        assert "MOD004" in listed.output
    loader.load.cache_clear()
    assert "Traceback" not in auditor("audit", "net.py").output
    tested = auditor("test-rules")
    assert tested.exit_code in (1, 2)
    assert message.removeprefix("USR001 print-in-forward failed: ").split(":")[0] in tested.output


def test_a_broken_rule_does_not_keep_others_from_fixing(folder: Path) -> None:
    edit(folder / "own/print_in_forward.py", 'yield rule.finding(call, "', 'yield 1 / 0, (call, "')
    (folder / "net.py").write_text(PRINTING + "\n" + BAD)
    assert check("--fix").exit_code == 2
    assert "training=self.training" in (folder / "net.py").read_text()


def test_an_error_says_the_line(folder: Path) -> None:
    path = folder / "own/print_in_forward.py"
    edit(path, "import ast\n", "import ast\n\n1 / 0\n")
    row = path.read_text().splitlines().index("1 / 0") + 1
    assert f"own/print_in_forward.py:{row}: could not be checked: " in check().output


def test_a_selector_of_a_broken_rule_says_why_it_is_unknown(folder: Path) -> None:
    edit(folder / "own/print_in_forward.py", "rule = Rule(", "rule == Rule(")
    result = check("--select", "USR001")
    assert result.exit_code == 2
    assert "unknown rule 'USR001'" in result.output
    assert "name 'rule' is not defined" in result.output


def test_a_clash_leaves_the_built_in_rule(folder: Path) -> None:
    edit(folder / "own/print_in_forward.py", "USR001", "MOD004")
    (folder / "net.py").write_text(BAD)
    result = check()
    assert result.exit_code == 2
    assert "MOD004 print-in-forward clashes with MOD004 functional-dropout-always-on" in result.output
    assert "net.py:7:16: MOD004" in result.output


# Found ---------------------------------------------------------------------------------------------------------------


def test_rules_share_helpers_and_two_folders_do_not_get_in_each_other_s_way(folder: Path) -> None:
    edit(folder / "own/print_in_forward.py", "from auditor.static.source import Source\n",
         "from auditor.static.source import Source\n\nfrom ._names import NAME\n")  # fmt: skip
    edit(folder / "own/print_in_forward.py", 'calls_named("print")', "calls_named(NAME)")
    (folder / "own/_names.py").write_text('NAME = "print"\n')
    other = folder / "sub/own"
    scaffold.write("log-in-forward", other, "USR009", loader.load_rules())
    edit(other / "log_in_forward.py", 'calls_named("print")', 'calls_named("log")')
    edit(other / "log_in_forward.py", '("print",)', '("log",)')
    (folder / "sub/auditor.toml").write_text('rules = ["own"]\n')
    (folder / "sub/net.py").write_text(PRINTING.replace("print", "log"))
    loader.load.cache_clear()
    result = auditor("check", "net.py", "sub/net.py", "--output-format", "json")
    assert found(result) == [("USR001", "net.py", 10), ("USR009", "sub/net.py", 10)]


@pytest.mark.slow
def test_an_installed_plug_in(folder: Path) -> None:
    """A distribution that pip installed; the index of rules is made anew when it comes and when it goes."""
    project = folder / "plugin"
    scaffold.write("log-in-forward", project / "acme_rules", "ACM001", ())
    (project / "acme_rules/__init__.py").write_text("")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "acme-rules"\nversion = "1"\n'
        '[project.entry-points."auditor.rules"]\nacme = "acme_rules"\n'
        '[tool.setuptools]\npackages = ["acme_rules"]\n'
    )
    site = folder / "site-packages"
    site.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    command = [sys.executable, "-m", "auditor", "check", "net.py", "--select", "ALL", "--output-format", "concise"]

    def run() -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert "ACM001" not in run()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(project)], check=True)
    assert "net.py:10:9: ACM001 [*]" in run()
    assert "net.py:10:9: ACM001 [*]" in run()  # from the index
    installed = site / "acme_rules/log_in_forward.py"
    installed.write_text(installed.read_text().replace("this prints", "now it prints"))
    assert "now it prints for every batch" in run()
    (site / "acme_rules/log_in_forward.py").write_text("1 / 0\n")
    assert "log_in_forward.py:1:1: could not be checked: this rule cannot be used: ZeroDivisionError" in run()
    for dist in site.glob("*.dist-info"):
        dist.rename(folder / "gone")
    assert "ACM001" not in run()


def test_the_scaffold_is_as_whole_as_a_built_in_rule() -> None:
    assert "USR001" not in BY_CODE
    text = scaffold.RULE.format(code="USR001")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
