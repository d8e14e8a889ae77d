"""The rule catalogue: one file per rule, in a folder per family. Files are discovered, never listed."""
