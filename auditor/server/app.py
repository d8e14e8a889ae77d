"""Answers the editor: diagnostics while typing, quick fixes, explanations."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.workspace import TextDocument

from auditor import __version__, loader
from auditor.finding import Finding
from auditor.fix.edit import Applicability
from auditor.report.catalogue import markdown
from auditor.rule import Rule
from auditor.server import convert
from auditor.server.opinion import Opinion, opinion, settings_for
from auditor.settings import FILES, Settings
from auditor.static.check import chosen_rules
from auditor.static.files import display

DELAY = 0.2  # seconds without a keystroke after which a text is read
FIX_ALL = "source.fixAll.auditor"


class Server(LanguageServer):
    """What the server remembers between two messages of the editor."""

    def __init__(self) -> None:
        super().__init__("auditor", __version__)
        self.options: Mapping[str, Any] = {}
        self.opinions: dict[str, tuple[int | None, Opinion]] = {}
        self.waiting: dict[str, asyncio.Task[None]] = {}
        self.said: set[str] = set()

    # Reading ---------------------------------------------------------------------------------------------------------

    def opinion_on(self, uri: str) -> Opinion | None:
        """What is found in the text of a document as it is now; None for one that is no Python."""
        document = self.workspace.get_text_document(uri)
        if document.language_id != "python" and not document.path.endswith((".py", ".pyi")):
            return None
        version, known = self.opinions.get(uri, (None, None))
        if known is not None and version == document.version:
            return known
        path = display(document.path)
        found = opinion(path, document.source, self.settings_for(path))
        for problem in found.problems:
            if problem.path != path or found.parsed:
                self.say(f"{problem.path}: {problem.message}")
        self.opinions[uri] = (document.version, found)
        return found

    def settings_for(self, path: str) -> Settings:
        """The settings in force for a file, read anew; those that cannot be used are named, and defaults are used."""
        try:
            settings = settings_for(path, self.options)
            chosen_rules(settings)
            return settings
        except (ValueError, loader.RuleError) as error:
            self.say(f"{error}; the default settings are used")
            return Settings()

    def say(self, message: str) -> None:
        """Tell the user once."""
        if message not in self.said:
            self.said.add(message)
            self.window_show_message(types.ShowMessageParams(types.MessageType.Warning, f"auditor: {message}"))

    # Publishing ------------------------------------------------------------------------------------------------------

    def publish(self, uri: str) -> None:
        """Show what is found in a document. While its text is no Python, what was shown last stays."""
        found = self.opinion_on(uri)
        if found is None or not found.parsed:
            return
        document = self.workspace.get_text_document(uri)
        rules = self.rules(found)
        diagnostics = [self.diagnostic(finding, found, document, rules) for finding in found.findings]
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, diagnostics, document.version))

    async def publish_soon(self, uri: str) -> None:
        """Publish when the user pauses."""
        if uri in self.waiting:
            self.waiting.pop(uri).cancel()
        self.waiting[uri] = asyncio.ensure_future(self._publish_after_a_pause(uri))

    async def _publish_after_a_pause(self, uri: str) -> None:
        await asyncio.sleep(DELAY)
        self.waiting.pop(uri, None)
        self.publish(uri)

    def publish_all(self) -> None:
        """Read every open document again: the settings or the rules have changed."""
        loader.forget_user_rules()
        self.said.clear()
        self.opinions.clear()
        for uri in list(self.workspace.text_documents):
            self.publish(uri)

    def rules(self, found: Opinion) -> dict[str, Rule]:
        return {rule.code: rule for rule in found.rules}

    def diagnostic(
        self, finding: Finding, found: Opinion, document: TextDocument, rules: Mapping[str, Rule]
    ) -> types.Diagnostic:
        return convert.diagnostic(finding, found.text, document.uri, rules, document.position_codec)

    # Mending ---------------------------------------------------------------------------------------------------------

    def actions(self, uri: str, where: types.Range, only: Sequence[str] | None) -> list[types.CodeAction]:
        """The fixes for what is found in a range, a comment to silence each, and everything at once."""
        found = self.opinion_on(uri)
        if found is None or not found.parsed:
            return []
        document, rules = self.workspace.get_text_document(uri), self.rules(found)
        actions = []
        for number, offer in enumerate(found.offers) if wanted(types.CodeActionKind.QuickFix, only) else ():
            diagnostic = self.diagnostic(offer, found, document, rules)
            if not convert.overlap(diagnostic.range, where):
                continue
            if offer.fix is not None and offer.fix.applicability is not Applicability.DISPLAY_ONLY:
                unsafe = " (unsafe)" if offer.fix.applicability is Applicability.UNSAFE else ""
                title = f"{offer.code}: {offer.fix.title}{unsafe}"
                actions.append(self.action(document, title, "fix", number, diagnostic, preferred=not unsafe))
            title = f"{offer.code}: silence on this line"
            actions.append(self.action(document, title, "silence", number, diagnostic))
        if wanted(FIX_ALL, only) and found.mendable:
            actions.append(self.action(document, "auditor: fix all", "fix-all"))
        return actions

    def action(
        self,
        document: TextDocument,
        title: str,
        deed: str,
        number: int = 0,
        diagnostic: types.Diagnostic | None = None,
        preferred: bool = False,
    ) -> types.CodeAction:
        """One action; its edit is worked out when it is chosen, where the editor can ask for that."""
        action = types.CodeAction(
            title,
            kind=types.CodeActionKind.QuickFix if diagnostic else FIX_ALL,
            diagnostics=[diagnostic] if diagnostic else None,
            is_preferred=preferred or None,
            data={"uri": document.uri, "version": document.version, "deed": deed, "number": number},
        )
        return action if self.resolves() else self.resolve(action)

    def resolves(self) -> bool:
        """Whether the editor asks for the edit of an action when it is chosen."""
        text_document = self.client_capabilities.text_document
        able = text_document.code_action.resolve_support if text_document and text_document.code_action else None
        return able is not None and "edit" in able.properties

    def resolve(self, action: types.CodeAction) -> types.CodeAction:
        """The action with its edit; without one if the text has changed since it was offered."""
        data: Mapping[str, Any] = action.data or {}
        document = self.workspace.get_text_document(str(data["uri"]))
        found = self.opinion_on(document.uri)
        if found is None or document.version != data["version"]:
            return action
        if data["deed"] == "fix-all":
            after = found.all_mended()
        else:
            finding = found.offers[int(data["number"])]
            after = found.mended(finding) if data["deed"] == "fix" else found.silenced(finding)
        newline = "\r\n" if "\r\n" in document.source else "\n"
        edits = convert.text_edits(found.text, after, newline, document.position_codec)
        action.edit = types.WorkspaceEdit(changes={document.uri: edits})
        return action

    # Explaining ------------------------------------------------------------------------------------------------------

    def explanation(self, uri: str, position: types.Position) -> types.Hover | None:
        """The rules of the findings at a position, or of the code in a comment there."""
        found = self.opinion_on(uri)
        if found is None:
            return None
        document = self.workspace.get_text_document(uri)
        rules = self.rules(found)
        here = types.Range(position, position)
        codes = [
            finding.code
            for finding in found.findings
            if convert.overlap(self.diagnostic(finding, found, document, rules).range, here)
        ]
        line = document.lines[position.line] if position.line < len(document.lines) else ""
        place = document.position_from_client_units(position)
        comment = line.find("#")
        if 0 <= comment <= place.character:
            known = loader.load_rules(found.settings.rules)
            named = loader.find_rule(known, convert.word_at(line, place.character))
            codes, rules = ([named.code], {named.code: named}) if named else (codes, rules)
        texts = [markdown(rules[code]) for code in dict.fromkeys(codes) if code in rules]
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, "\n\n---\n\n".join(texts))) if texts else None


def wanted(kind: str, only: Sequence[str] | None) -> bool:
    """Whether the editor asks for actions of this kind: for all, for it, or for a kind above it."""
    return only is None or any(kind == asked or kind.startswith(asked + ".") or not asked for asked in only)


def make() -> Server:
    """The server with its answers to the editor's messages."""
    server = Server()

    @server.feature(types.INITIALIZE)
    def initialize(params: types.InitializeParams) -> None:
        server.options = options_in(params.initialization_options)
        root = server.workspace.root_path
        if root and os.path.isdir(root):
            os.chdir(root)  # paths are shown from there, as on the command line

    @server.feature(types.INITIALIZED)
    async def initialized(params: types.InitializedParams) -> None:
        workspace = server.client_capabilities.workspace
        watching = workspace.did_change_watched_files if workspace else None
        if watching and watching.dynamic_registration:
            watchers = [types.FileSystemWatcher(f"**/{name}") for name in FILES]
            registration = types.Registration(
                "settings",
                types.WORKSPACE_DID_CHANGE_WATCHED_FILES,
                types.DidChangeWatchedFilesRegistrationOptions(watchers),
            )
            await server.client_register_capability_async(types.RegistrationParams([registration]))

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(params: types.DidOpenTextDocumentParams) -> None:
        server.publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    async def changed(params: types.DidChangeTextDocumentParams) -> None:
        await server.publish_soon(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(params: types.DidSaveTextDocumentParams) -> None:
        document = server.workspace.get_text_document(params.text_document.uri)
        rules = server.settings_for(display(document.path)).rules
        of_rules = any(Path(document.path).is_relative_to(Path(folder).absolute()) for folder in rules)
        if document.filename in FILES or of_rules:
            server.publish_all()
        else:
            server.publish(document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(params: types.DidCloseTextDocumentParams) -> None:
        uri = params.text_document.uri
        server.opinions.pop(uri, None)
        if uri in server.waiting:
            server.waiting.pop(uri).cancel()
        server.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))

    @server.feature(types.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    def settings_changed(params: types.DidChangeWatchedFilesParams) -> None:
        server.publish_all()

    @server.feature(types.WORKSPACE_DID_CHANGE_CONFIGURATION)
    def options_changed(params: types.DidChangeConfigurationParams) -> None:
        server.options = options_in(params.settings)
        server.publish_all()

    @server.feature(
        types.TEXT_DOCUMENT_CODE_ACTION,
        types.CodeActionOptions([types.CodeActionKind.QuickFix, FIX_ALL], resolve_provider=True),
    )
    def actions(params: types.CodeActionParams) -> list[types.CodeAction]:
        return server.actions(params.text_document.uri, params.range, params.context.only)

    @server.feature(types.CODE_ACTION_RESOLVE)
    def resolve(action: types.CodeAction) -> types.CodeAction:
        return server.resolve(action)

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def hover(params: types.HoverParams) -> types.Hover | None:
        return server.explanation(params.text_document.uri, params.position)

    return server


def options_in(settings: Any) -> Mapping[str, Any]:
    """The editor's settings: a table as `[tool.auditor]`, alone or under the name `auditor`."""
    table = settings.get("auditor", settings) if isinstance(settings, Mapping) else {}
    return table if isinstance(table, Mapping) else {}


def start() -> None:
    """Serve on standard input and output; what rules print goes to standard error."""
    stdout, sys.stdout = sys.stdout.buffer, sys.stderr
    make().start_io(sys.stdin.buffer, stdout)
