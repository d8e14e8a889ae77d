from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from auditor.fix.write import WriteError, replace_file


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_content_is_replaced_and_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"a = 1\n")
    path.chmod(0o750)
    replace_file(path, b"a = 1\n", "a = 2\n")
    assert path.read_bytes() == b"a = 2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("original", "text", "expected"),
    [
        (b"a\r\nb\r\n", "a\nc\nb\n", b"a\r\nc\r\nb\r\n"),
        (b"a\r\nb\nc\r\n", "a\nb\nx\nc\n", b"a\r\nb\nx\r\nc\r\n"),
        (b"a\rb", "a\nb\nc", b"a\rb\rc"),
        (b"a", "a\nb", b"a\nb"),
        (b"\xef\xbb\xbfa = 1\n", "a = 2\n", b"\xef\xbb\xbfa = 2\n"),
        (b"\xef\xbb\xbfa = 1\n", "\ufeffa = 2\n", b"\xef\xbb\xbfa = 2\n"),
        (b"# coding: latin-1\n# \xe9\n", "# coding: latin-1\n# é ü\n", b"# coding: latin-1\n# \xe9 \xfc\n"),
        ("# é\n".encode(), "# é\u2028 x\n", "# é\u2028 x\n".encode()),
        (b"", "x\n", b"x\n"),
    ],
)
def test_newlines_encoding_and_mark_are_those_of_the_file(
    tmp_path: Path, original: bytes, text: str, expected: bytes
) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(original)
    replace_file(path, original, text)
    assert path.read_bytes() == expected


def test_a_character_the_encoding_lacks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    original = b"# coding: latin-1\n"
    path.write_bytes(original)
    with pytest.raises(WriteError, match="iso-8859-1, has no"):
        replace_file(path, original, "# coding: latin-1\n# \u20ac\n")
    assert path.read_bytes() == original


def test_a_file_that_changed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"newer\n")
    with pytest.raises(WriteError, match="changed since it was read"):
        replace_file(path, b"older\n", "fixed\n")
    assert path.read_bytes() == b"newer\n"
    assert not leftovers(tmp_path)


def test_a_file_that_changes_during_the_write_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"a\n")
    monkeypatch.setattr(os, "fsync", lambda handle: path.write_bytes(b"saved by an editor\n"))
    with pytest.raises(WriteError, match="changed since it was read"):
        replace_file(path, b"a\n", "b\n")
    assert path.read_bytes() == b"saved by an editor\n"
    assert not leftovers(tmp_path)


def test_a_symbolic_link_is_followed_and_kept(tmp_path: Path) -> None:
    target, link = tmp_path / "real" / "m.py", tmp_path / "link.py"
    target.parent.mkdir()
    target.write_bytes(b"a\n")
    link.symlink_to(target)
    replace_file(link, b"a\n", "b\n")
    assert link.is_symlink()
    assert target.read_bytes() == b"b\n"


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"a\n")
    path.chmod(0o444)
    with pytest.raises(WriteError, match=r"m\.py was not written: it is read-only"):
        replace_file(path, b"a\n", "b\n")
    assert path.read_bytes() == b"a\n"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        replace_file(tmp_path / "m.py", b"", "b\n")


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(b"a\n")

    def interrupted(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, where, interrupted)
    with pytest.raises((KeyboardInterrupt, WriteError)):
        replace_file(path, b"a\n", "b\n")
    assert path.read_bytes() == b"a\n"
    assert not leftovers(tmp_path)
