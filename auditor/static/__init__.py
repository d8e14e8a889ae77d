"""Reading source: facts about files that mention torch, found without importing torch or the file."""
