"""Facts that several rules share, each computed from the core of `auditor.static` when a rule asks for it."""
