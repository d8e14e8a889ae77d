"""Replaces a file in one step, or not at all: encoding, byte-order mark, newlines and permissions stay as they were."""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import tempfile
import tokenize
from collections import Counter

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


class WriteError(OSError):
    """The file was not replaced; it is byte for byte what it was."""


def replace_file(path: str | os.PathLike[str], original: bytes, text: str) -> None:
    """Put `text` in place of the content of `path`, which must still be `original`.

    `text` may have any newlines: lines kept from the original keep theirs, new ones get the most frequent. Behind a
    symbolic link, the file it points to is replaced and the link kept. Raises WriteError, leaving the file as it was,
    if it changed since `original` was read, is read-only, or cannot hold the text in its encoding.
    """
    target = os.path.realpath(path)
    content = encode(original, text)
    mode = _writable_mode(target, path)
    folder, name = os.path.split(target)
    _refuse_changed(target, path, original)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
    except OSError as error:
        raise WriteError(f"{path} was not written: no file can be made beside it ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        _refuse_changed(target, path, original)  # someone may have saved it while we wrote
        os.replace(temporary, target)
    except BaseException as error:  # an interrupt too: nothing half-written, nothing left behind
        os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, WriteError):
            raise WriteError(f"{path} was not written: {error.strerror}") from error
        raise


def encode(original: bytes, text: str) -> bytes:
    """`text` as bytes in the encoding, with the byte-order mark and with the newlines of `original`.

    WriteError if the encoding has no bytes for a character of `text`.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(original).readline)
    bom = codecs.BOM_UTF8 if original.startswith(codecs.BOM_UTF8) else b""
    encoding = "utf-8" if bom else encoding
    restored = _with_newlines_of(original[len(bom) :].decode(encoding), text.removeprefix("\ufeff"))
    try:
        return bom + restored.encode(encoding)
    except UnicodeEncodeError as error:
        raise WriteError(f"the file's encoding, {encoding}, has no {text[error.start : error.end]!r}") from error


def _with_newlines_of(old: str, new: str) -> str:
    old_lines, new_lines = _LINE.findall(old), _LINE.findall(new)
    ends = Counter(_end(line) for line in old_lines if _end(line))
    usual = max(ends, key=lambda end: ends[end], default="\n")
    bodies = [line.rstrip("\r\n") for line in new_lines]
    kept = [usual if _end(line) else "" for line in new_lines]
    if len(ends) > 1:
        from auditor.fix.rewrite import line_changes

        for tag, start, _, new_start, new_end in line_changes([line.rstrip("\r\n") for line in old_lines], bodies):
            if tag == "equal":
                for index in range(new_start, new_end):
                    kept[index] = kept[index] and (_end(old_lines[start + index - new_start]) or usual)
    return "".join(body + end for body, end in zip(bodies, kept, strict=True))


def _end(line: str) -> str:
    return line[len(line.rstrip("\r\n")) :]


def _writable_mode(target: str, path: str | os.PathLike[str]) -> int:
    try:
        mode = os.stat(target).st_mode
    except OSError as error:
        raise WriteError(f"{path} was not written: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise WriteError(f"{path} was not written: it is not a regular file")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise WriteError(f"{path} was not written: it is read-only")
    return stat.S_IMODE(mode)


def _refuse_changed(target: str, path: str | os.PathLike[str], original: bytes) -> None:
    with open(target, "rb") as file:
        if file.read() != original:
            raise WriteError(f"{path} was not written: it has changed since it was read")
