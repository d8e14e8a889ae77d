"""The server under a real client: what an editor sees while its user types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lsprotocol import types

from auditor.settings import FILES
from tests.cli import BAD, FIXED, auditor
from tests.fixtures import BY_CODE
from tests.server.editor import EDITORS, editor, run

WIDE = BAD.replace("        return", '        "𝄞 ä"; return')
UNSAFE = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.95)
        self.out = nn.Linear(8, 8)

    def forward(self, x):
        return self.out(self.drop(self.fc(x)))
"""


def codes(diagnostics: list[types.Diagnostic]) -> list[str]:
    return [str(diagnostic.code) for diagnostic in diagnostics]


@pytest.mark.parametrize("name", EDITORS)
def test_findings_follow_the_text(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with editor(tmp_path, name) as user:
            (found,) = await user.open("net.py", BAD)
            assert (found.code, found.source, found.severity) == ("MOD004", "auditor", types.DiagnosticSeverity.Error)
            assert found.range == types.Range(types.Position(6, 15), types.Position(6, 32))
            assert "even after `model.eval()`" in found.message
            assert found.code_description is not None
            assert found.code_description.href.endswith("/rules/functional-dropout-always-on/")
            assert not (tmp_path / "net.py").exists()  # a buffer that was never saved
            assert await user.retype("net.py", FIXED) == []
            (found,) = await user.retype("net.py", "\n" + BAD)
            assert found.range.start.line == 7
            assert "MOD004" in codes(await user.open("untitled:Untitled-1", BAD))

    run(scenario())


def test_typing_is_waited_out_and_broken_text_keeps_what_was_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path) as user:
            await user.open("net.py", BAD)

            def type_fast() -> None:
                for number in range(20):
                    user.type("net.py", BAD + "#" * number)
                user.type("net.py", FIXED)

            assert await user.shown("net.py", type_fast) == []  # of the last text; none between was looked at
            user.type("net.py", FIXED + "def (")
            assert await user.actions("net.py", 6) == []
            (found,) = await user.retype("net.py", BAD)
            assert found.code == "MOD004"

    run(scenario())


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_quick_fixes(tmp_path: Path, name: str, newline: str) -> None:
    async def scenario() -> None:
        async with editor(tmp_path, name) as user:
            await user.open("net.py", WIDE.replace("\n", newline))
            fix, silence, everything = await user.actions("net.py", 6)
            assert (fix.title, fix.kind, fix.is_preferred) == (
                "MOD004: pass `training=self.training`", types.CodeActionKind.QuickFix, True,
            )  # fmt: skip
            mended = WIDE.replace("0.5)", "0.5, training=self.training)").replace("\n", newline)
            assert user.applied("net.py", fix) == mended
            assert everything.kind == "source.fixAll.auditor"
            assert user.applied("net.py", everything) == mended
            silenced = WIDE.replace("0.5)", "0.5)  # noqa: MOD004").replace("\n", newline)
            assert user.applied("net.py", silence) == silenced
            assert await user.retype("net.py", silenced) == []
            assert await user.actions("net.py", 0, ["quickfix"]) == []

    run(scenario())


def test_actions_of_the_kind_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path) as user:
            await user.open("net.py", BAD)
            kinds = {
                "quickfix": 2, "source.fixAll": 1, "source.fixAll.auditor": 1, "source": 1, "refactor": 0,
                "source.organizeImports": 0, "": 3,
            }  # fmt: skip
            for kind, count in kinds.items():
                assert len(await user.actions("net.py", 6, [kind])) == count, kind

    run(scenario())


def test_unsafe_fixes_are_marked_and_left_out_of_fix_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path, options={"select": ["DRP001"]}) as user:
            (found,) = await user.open("net.py", UNSAFE)
            actions = await user.actions("net.py", found.range.start.line)
            assert [action.kind for action in actions] == [types.CodeActionKind.QuickFix] * 2
            assert actions[0].title.endswith("(unsafe)")
            assert not actions[0].is_preferred

    assert str(BY_CODE["DRP001"].applicability) == "unsafe"
    run(scenario())


def test_an_edit_is_not_made_in_a_text_that_has_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path) as user:
            await user.open("net.py", BAD)
            where = types.Range(types.Position(6, 0), types.Position(6, 9))
            document = types.TextDocumentIdentifier(user.uri("net.py"))
            offered = await user.client.text_document_code_action_async(
                types.CodeActionParams(document, where, types.CodeActionContext([]))
            )
            await user.retype("net.py", "\n" + BAD)
            action = offered[0]
            assert isinstance(action, types.CodeAction)
            assert action.edit is None
            assert (await user.client.code_action_resolve_async(action)).edit is None

    run(scenario())


def test_explanations(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path) as user:
            await user.open("net.py", BAD)
            text = await user.hover("net.py", 6, 20)
            assert text.startswith("# functional-dropout-always-on (MOD004)")
            assert "```python\nclass Net(nn.Module):\n" in text
            assert "gains: the forward in eval mode uses no random numbers" in text
            assert await user.hover("net.py", 0, 3) == ""
            await user.retype(
                "net.py", "# auditor: ignore-file[missing-eval]\n" + BAD.replace("0.5)", "0.5)  # noqa: MOD004")
            )
            assert "MOD001" in await user.hover("net.py", 0, 27)
            assert "MOD004" in await user.hover("net.py", 7, 46)
            assert await user.hover("net.py", 7, 20) == ""

    run(scenario())


def test_settings_of_files_and_of_the_editor(tmp_path: Path) -> None:
    (tmp_path / "auditor.toml").write_text('extend-exclude = ["old"]\n[per-file-ignores]\n"legacy/*" = ["MOD004"]\n')

    async def scenario() -> None:
        async with editor(tmp_path) as user:
            assert codes(await user.open("net.py", BAD)) == ["MOD004"]
            assert await user.open("legacy/net.py", BAD) == []
            assert await user.open("old/net.py", BAD) == []
            watched = types.DidChangeWatchedFilesParams(
                [types.FileEvent((tmp_path / "auditor.toml").as_uri(), types.FileChangeType.Changed)]
            )
            (tmp_path / "auditor.toml").write_text('ignore = ["MOD"]\n')
            assert await user.shown("net.py", lambda: user.client.workspace_did_change_watched_files(watched)) == []
            (tmp_path / "auditor.toml").write_text("selekt = []\n")
            found = await user.shown("net.py", lambda: user.client.workspace_did_change_watched_files(watched))
            assert codes(found) == ["MOD004"]  # the defaults
            assert "did you mean 'select'?" in user.said
            (tmp_path / "auditor.toml").unlink()
            changed = types.DidChangeConfigurationParams({"auditor": {"ignore": ["MOD004"]}})
            assert await user.shown("net.py", lambda: user.client.workspace_did_change_configuration(changed)) == []

    run(scenario())


def test_the_editor_is_asked_to_watch_settings(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with editor(tmp_path) as user:
            await user.open("net.py", BAD)
            assert user.watched == [f"**/{name}" for name in FILES]

    run(scenario())


def test_a_baseline_hides_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(BAD)
    assert auditor("baseline").exit_code == 0

    async def scenario() -> None:
        async with editor(tmp_path) as user:
            assert await user.open("net.py", BAD) == []
            (found,) = await user.retype(
                "net.py", BAD + "\n    def twice(self, x):\n        return F.dropout(x, 0.1)\n"
            )
            assert found.range.start.line == 9

    run(scenario())


def test_own_rules_are_read_again_when_they_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert auditor("new-rule", "print-in-forward").exit_code == 0
    (tmp_path / "auditor.toml").write_text('rules = ["auditor_rules"]\n')
    rule = tmp_path / "auditor_rules/print_in_forward.py"
    text = BAD.replace("        return F.dropout(x, 0.5)", "        print(x)\n        return x")

    async def scenario() -> None:
        async with editor(tmp_path) as user:
            assert [found.message for found in await user.open("net.py", text)] == ["this prints for every batch"]
            written = rule.read_text().replace('call, "this prints', 'cal, "now it prints')
            rule.write_text(written)
            await user.open("auditor_rules/print_in_forward.py", written)
            saved = types.DidSaveTextDocumentParams(types.TextDocumentIdentifier(rule.as_uri()))
            await user.shown("net.py", lambda: user.client.text_document_did_save(saved))
            assert "print-in-forward failed" in user.said
            rule.write_text(written.replace("cal,", "call,"))
            found = await user.shown("net.py", lambda: user.client.text_document_did_save(saved))
            assert [item.message for item in found] == ["now it prints for every batch"]

    run(scenario())


def test_without_pygls() -> None:
    program = (
        "import sys; sys.modules['pygls'] = None; sys.argv = ['auditor', 'server'];"
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'pygls' else f(n);"
        "from auditor.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "Error: the server needs pygls: pip install 'torch-auditor[server]'\n"
