"""Train or eval: which mode each model of a file can be in, and which parts of it the mode changes."""
