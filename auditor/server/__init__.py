"""auditor in the editor: an LSP server. `opinion` says what is found in a text and what would mend it, in auditor's
terms; `convert` puts that into the protocol's; `app` answers the editor."""
