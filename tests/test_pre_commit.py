"""The hooks under the real pre-commit, and the CI snippets of the documentation under the schemas of their systems.

pre-commit builds the hook's environment itself, by installing this project with pip from a git repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cli import BAD, FIXED, git, repository
from tests.fixtures import ROOT

pytestmark = pytest.mark.slow
BLOCK = re.compile(r"```yaml\n# (\S+)\n(.*?)```", re.DOTALL)


def tool(*command: str) -> None:
    """Run a tool of this environment and show what it says if it fails."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with what a commit of this working tree would hold."""
    copy = tmp_path_factory.mktemp("hooks")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in listed.split("\0"):
        if (name.startswith(("auditor/", "rules/")) or "/" not in name) and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    repository(copy)
    return copy


@dataclass
class Project:
    """A user's repository with the hook installed."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def commit(self, message: str = "work") -> tuple[int, str]:
        return self.run("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-m", message)

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            (self.folder / f"{name}.py").write_text(text)
        git(self.folder, "add", "--all")

    def configure(self, source: Path, hook: str) -> None:
        revision = git(source, "rev-parse", "HEAD").strip()
        (self.folder / ".pre-commit-config.yaml").write_text(
            f"repos:\n  - repo: {source}\n    rev: {revision}\n    hooks:\n      - {hook}\n"
        )
        git(self.folder, "add", ".pre-commit-config.yaml")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def project(tmp_path: Path, hooks: Path, home: Path) -> Project:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PRE_COMMIT"))}
    environment |= {"PRE_COMMIT_HOME": str(home), "AUDITOR_CACHE_DIR": str(home / "auditor"), "NO_COLOR": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    folder = tmp_path / "project"
    folder.mkdir()
    repository(folder)
    project = Project(folder, environment)
    project.configure(hooks, "id: auditor-check")
    code, output = project.run("pre-commit", "install")
    assert code == 0, output
    return project


def test_manifest() -> None:
    tool("pre_commit", "validate-manifest", ".pre-commit-hooks.yaml")


def test_a_failing_commit_then_a_fixed_one(project: Project) -> None:
    project.write(net=BAD)
    code, output = project.commit()
    assert code == 1, output
    assert "auditor check" in output
    assert "net.py:7:16: MOD004" in output
    assert git(project.folder, "log", "--oneline").count("\n") == 1
    project.write(net=FIXED)
    code, output = project.commit()
    assert code == 0, output
    assert re.search(r"auditor check\.+Passed", output)


def test_its_environment_has_no_torch(project: Project, home: Path) -> None:
    project.write(net=FIXED)
    assert project.commit()[0] == 0
    (environment,) = home.glob("repo*/py_env-*")
    installed = {path.name.split("-")[0] for path in environment.glob("lib/python*/site-packages/*.dist-info")}
    assert {"torch_auditor", "click", "libcst", "pathspec"} <= installed
    assert not {"torch", "numpy"} & installed


def test_no_python_file_staged(project: Project) -> None:
    (project.folder / "notes.txt").write_text("dropout")
    git(project.folder, "add", "--all")
    code, output = project.commit()
    assert code == 0, output
    assert re.search(r"auditor check\.+\(no files to check\)Skipped", output)


def test_partially_staged_files(project: Project) -> None:
    """What is staged counts, what is not staged neither fails nor saves the commit, and stays as it was."""
    project.write(net=FIXED)
    (project.folder / "net.py").write_text(BAD)
    code, output = project.commit()
    assert code == 0, output
    assert (project.folder / "net.py").read_text() == BAD
    project.write(net=BAD + "\n")
    (project.folder / "net.py").write_text(FIXED)
    code, output = project.commit()
    assert code == 1, output
    assert "net.py:7:16: MOD004" in output
    assert (project.folder / "net.py").read_text() == FIXED


def test_fixes_stop_the_commit_and_are_left_to_be_staged(project: Project, hooks: Path) -> None:
    project.configure(hooks, "{id: auditor-check, args: [--fix, --exit-non-zero-on-fix]}")
    project.write(net=BAD)
    code, output = project.commit()
    assert code == 1, output
    assert "1 fix written" in output
    assert (project.folder / "net.py").read_text() == FIXED
    project.write()
    assert project.commit()[0] == 0


def test_many_files_are_split_over_processes(project: Project) -> None:
    """Each process sees some of the files; together they find everything once, and share one baseline and index."""
    folder = project.folder / ("long_name_" * 20)
    folder.mkdir()
    count = 700
    for number in range(count):
        (folder / f"{'net' * 50}_{number}.py").write_text(BAD)
    git(project.folder, "add", "--all")
    code, output = project.run("pre-commit", "run", "--all-files")
    assert code == 1, output[-2000:]
    assert output.count(": MOD004 [*]") == count
    assert output.count("\nFound ") > 1
    code, output = project.run(sys.executable, "-m", "auditor", "baseline")
    assert code == 0, output
    code, output = project.run("pre-commit", "run", "--all-files")
    assert code == 0, output[-2000:]


def test_excluded_files_stay_excluded(project: Project) -> None:
    (project.folder / "pyproject.toml").write_text('[tool.auditor]\nextend-exclude = ["legacy"]\n')
    (project.folder / "legacy").mkdir()
    (project.folder / "legacy/net.py").write_text(BAD)
    git(project.folder, "add", "--all")
    code, output = project.commit()
    assert code == 0, output


def test_an_audit_as_a_hook(project: Project, hooks: Path) -> None:
    project.configure(hooks, '{id: auditor-audit, args: ["net.py::Net", --input, 2x8, --select, MOD004]}')
    project.write(net=BAD)
    code, output = project.commit()
    assert code == 1, output
    assert "seen in a run" in output


# GitHub, GitLab -----------------------------------------------------------------------------------------------------


def test_action_follows_its_schema() -> None:
    tool("check_jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml")


def test_snippets_of_the_documentation(tmp_path: Path) -> None:
    """Each YAML block names its file in its first line and is valid there."""
    blocks = BLOCK.findall((ROOT / "docs/ci.md").read_text(encoding="utf-8"))
    assert [name for name, _ in blocks] == [
        ".pre-commit-config.yaml",
        ".github/workflows/auditor.yml",
        ".github/workflows/auditor.yml",
        ".gitlab-ci.yml",
    ]
    for number, (name, text) in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        if "pre-commit" in name:
            tool("pre_commit", "validate-config", str(file))
            hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
            assert set(re.findall(r"id: (\S+)", text)) == {hook["id"] for hook in hooks}
        else:
            schema = "vendor.gitlab-ci" if "gitlab" in name else "vendor.github-workflows"
            tool("check_jsonschema", "--builtin-schema", schema, str(file))


def test_commands_of_the_documentation(tmp_path: Path) -> None:
    """The options that the documentation passes exist."""
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    help_text = "".join(
        subprocess.run([sys.executable, "-m", "auditor", name, "--help"], capture_output=True, text=True).stdout
        for name in ("check", "audit", "baseline")
    )
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert {"--changed-since", "--report", "--prune"} <= options
    assert [option for option in options if option not in help_text] == []


def action(step: int, inputs: dict[str, str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """One step of the action as the runner carries it out: `${{ … }}` filled in, the script under `bash -e`."""
    definition = yaml.safe_load((ROOT / "action.yml").read_text())
    values = {f"inputs.{name}": str(given["default"]) for name, given in definition["inputs"].items()}
    values |= {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(ROOT)}
    script = definition["runs"]["steps"][step]
    own = {
        name: re.sub(r"\$\{\{ *(.*?) *\}\}", lambda match: values[match[1]], value)
        for name, value in script["env"].items()
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script["run"]]
    done = subprocess.run(command, cwd=folder, env=environment | own, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_action_runs(project: Project, hooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_pre_commit.ROOT", hooks)  # a build leaves nothing in the working tree
    runner = tmp_path / "runner"
    runner.mkdir()
    environment = project.environment | {
        "RUNNER_TEMP": str(runner),
        "GITHUB_ENV": str(runner / "env"),
        "GITHUB_STEP_SUMMARY": str(runner / "summary.md"),
        "GITHUB_WORKSPACE": str(project.folder),
    }
    project.write(net=BAD)
    inputs = {"args": "check . --select MOD", "sarif-file": "auditor.sarif"}
    code, output = action(0, inputs, project.folder, environment)
    assert code == 0, output
    environment |= dict(line.split("=", 1) for line in (runner / "env").read_text().splitlines())
    assert environment["AUDITOR_PYTHON"] == str(runner / "auditor/bin/python")
    code, output = action(1, inputs, project.folder, environment)
    assert code == 1, output
    assert output.startswith("::error title=auditor MOD004 functional-dropout-always-on,file=net.py,line=7,"), output
    assert "| error | `net.py:7` |" in (runner / "summary.md").read_text()
    assert '"version": "2.1.0"' in (project.folder / "auditor.sarif").read_text()
    project.write(net=FIXED)
    code, output = action(1, inputs | {"summary": "false"}, project.folder, environment)
    assert (code, output) == (0, "")
    assert (runner / "summary.md").read_text().count("## auditor") == 1
    code, _ = action(1, {"args": "check nowhere.py"}, project.folder, environment)
    assert code == 2
