"""An editor: a real LSP client, with the capabilities that real editors announce, and the server in a process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lsprotocol import types
from pytest_lsp import LanguageClient, client_capabilities, make_test_lsp_client

from tests.fixtures import ROOT

EDITORS = ("visual-studio-code", "neovim", "emacs")
PATIENCE = 60.0
UNITS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}
"""How the units of a column are encoded, and the bytes of one."""


class Editor:
    """One editor with a project open."""

    def __init__(self, client: LanguageClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.texts: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.watched: list[str] = []
        self.encoding, self.width = UNITS["utf-16"]

        @client.feature(types.CLIENT_REGISTER_CAPABILITY)
        def register(params: types.RegistrationParams) -> None:
            for registration in params.registrations:
                assert registration.method == types.WORKSPACE_DID_CHANGE_WATCHED_FILES
                self.watched += [watcher["globPattern"] for watcher in registration.register_options["watchers"]]

    def uri(self, name: str) -> str:
        return name if ":" in name else (self.folder / name).as_uri()

    async def shown(self, name: str, deed: Callable[[], Any]) -> list[types.Diagnostic]:
        """Do something, and wait for what the server then finds in a document."""
        self.client.diagnostics.pop(self.uri(name), None)
        deed()
        async with asyncio.timeout(PATIENCE):
            while self.uri(name) not in self.client.diagnostics:
                await asyncio.sleep(0.01)
        return list(self.client.diagnostics[self.uri(name)])

    @property
    def said(self) -> str:
        """The last message to the user."""
        return self.client.messages[-1].message

    async def open(self, name: str, text: str, language: str = "python") -> list[types.Diagnostic]:
        self.texts[name], self.versions[name] = text, 1
        document = types.TextDocumentItem(self.uri(name), language, 1, text)
        opening = types.DidOpenTextDocumentParams(document)
        return await self.shown(name, lambda: self.client.text_document_did_open(opening))

    def type(self, name: str, text: str) -> None:
        """Replace the text, as typing does."""
        self.texts[name] = text
        self.versions[name] += 1
        document = types.VersionedTextDocumentIdentifier(self.versions[name], self.uri(name))
        change = types.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(types.DidChangeTextDocumentParams(document, [change]))

    async def retype(self, name: str, text: str) -> list[types.Diagnostic]:
        """Replace the text, and wait for what is found in it."""
        return await self.shown(name, lambda: self.type(name, text))

    async def actions(
        self, name: str, row: int, only: list[str] | None = None, diagnostics: tuple[types.Diagnostic, ...] = ()
    ) -> list[types.CodeAction]:
        """The actions offered on a line (from 0), each with its edit."""
        where = types.Range(types.Position(row, 0), types.Position(row, 1000))
        context = types.CodeActionContext(list(diagnostics), only)
        offered = await self.client.text_document_code_action_async(
            types.CodeActionParams(types.TextDocumentIdentifier(self.uri(name)), where, context)
        )
        actions = [action for action in offered or [] if isinstance(action, types.CodeAction)]
        return [action if action.edit else await self.client.code_action_resolve_async(action) for action in actions]

    async def hover(self, name: str, row: int, column: int) -> str:
        document = types.TextDocumentIdentifier(self.uri(name))
        position = types.Position(row, column)
        found = await self.client.text_document_hover_async(types.HoverParams(document, position))
        return found.contents.value if found and isinstance(found.contents, types.MarkupContent) else ""

    def applied(self, name: str, action: types.CodeAction) -> str:
        """The text after an action, its edits made as an editor makes them that counts columns in these units."""
        assert action.edit is not None
        assert action.edit.changes is not None
        lines = [line.encode(self.encoding) for line in self.texts[name].splitlines(keepends=True)]
        starts = [sum(map(len, lines[:row])) for row in range(len(lines) + 1)]
        text = b"".join(lines)
        for edit in reversed(action.edit.changes[self.uri(name)]):  # in order, and none overlaps another
            start, end = (starts[at.line] + self.width * at.character for at in (edit.range.start, edit.range.end))
            text = text[:start] + edit.new_text.encode(self.encoding) + text[end:]
        return text.decode(self.encoding)


@asynccontextmanager
async def editor(folder: Path, name: str = EDITORS[0], options: dict[str, Any] | None = None) -> AsyncIterator[Editor]:
    """An editor of this kind with `folder` open; `options` are its settings for the server."""
    client = make_test_lsp_client()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUDITOR_CACHE_DIR": str(folder / ".cache")}
    await client.start_io(sys.executable, "-m", "auditor", "server", env=environment)
    params = types.InitializeParams(
        capabilities=client_capabilities(name), root_uri=folder.as_uri(), initialization_options=options
    )
    user = Editor(client, folder)
    answer = await client.initialize_session(params)
    user.encoding, user.width = UNITS[answer.capabilities.position_encoding or "utf-16"]
    try:
        yield user
    finally:
        await client.shutdown_session()
        await client.stop()


def run(scenario: Awaitable[None]) -> None:
    """Play a scenario to its end."""

    async def play() -> None:
        await scenario

    asyncio.run(play())
