"""Imports the user's files as Python would, except that a file's text may be replaced and that nothing escapes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import os
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from auditor.dynamic.lines import is_user_file
from auditor.finding import Problem

PROJECT_MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
GUARD = 'put what the file runs under `if __name__ == "__main__":`'


class LoadError(Exception):
    """A file or module that could not be imported; `problem` says why and what helps."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class _TextLoader(importlib.machinery.SourceFileLoader):
    """Loads the text it is given in place of the file's content."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self.text = text

    def get_code(self, fullname: str) -> types.CodeType | None:
        # Tracebacks and `inspect.getsource` read through linecache; without a time stamp it trusts this entry.
        linecache.cache[self.path] = (len(self.text), None, self.text.splitlines(keepends=True), self.path)
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def get_data(self, path: str) -> bytes:
        return self.text.encode()


class _TextFinder(importlib.abc.MetaPathFinder):
    """Finds modules as usual, but hands those with a replaced text to `_TextLoader`."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self.texts:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or os.path.realpath(spec.origin) not in self.texts:
            return None
        spec.loader = _TextLoader(fullname, spec.origin, self.texts[os.path.realpath(spec.origin)])
        return spec


_finder = _TextFinder()
_added_paths: list[str] = []
_before_user: set[str] = set()


def load_file(path: str, texts: Mapping[str, str]) -> types.ModuleType:
    """Import the file at `path` afresh; raises LoadError. `texts` replaces the content of files, by path.

    Relative imports, sibling imports and imports from the project's root work; `__main__` blocks do not run.
    """
    file = Path(path).resolve()
    if file.is_dir():
        raise LoadError(Problem(path, "this is a folder", "name the files that define the models, as in `models/*.py`"))
    if not file.is_file() and str(file) not in _resolved(texts):
        raise LoadError(Problem(path, "there is no such file"))
    if file.suffix != ".py":
        raise LoadError(Problem(path, "a model is read from a Python file (`.py`)", "name the file that defines it"))
    _forget_user_modules()
    _finder.texts = _resolved(texts)
    with _importing(str(file), path):
        name, package_root = _module_name(file)
        _extend_path(file, package_root)
        if package_root is not None:
            return _loaded_from(importlib.import_module(name), file, path)
        return _import_alone(file)


def load_module(name: str, texts: Mapping[str, str]) -> types.ModuleType:
    """Import the module with this dotted name afresh (installed packages as they are); raises LoadError."""
    _forget_user_modules()
    _finder.texts = _resolved(texts)
    with _importing("", name):
        _extend_path(Path.cwd() / "_", None)
        return importlib.import_module(name)


def _resolved(texts: Mapping[str, str]) -> dict[str, str]:
    return {os.path.realpath(path): text for path, text in texts.items()}


def _forget_user_modules() -> None:
    """Drop what earlier loads imported of the user's own code, so that changed texts take effect."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        _before_user.update(sys.modules)
    for name in [name for name, module in list(sys.modules.items()) if _is_users(name, module)]:
        del sys.modules[name]
    for entry in _added_paths:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
    _added_paths.clear()
    for filename in _finder.texts:
        linecache.cache.pop(filename, None)
    importlib.invalidate_caches()


def _is_users(name: str, module: types.ModuleType) -> bool:
    """Whether a module came from the user's code. Rules are kept, also the user's own."""
    if name in _before_user or name.partition(".")[0].startswith("auditor"):
        return False
    folders = getattr(module, "__path__", ())  # torch.classes makes up any attribute that is asked for
    places = [getattr(module, "__file__", None), *(folders if isinstance(folders, Iterable) else ())]
    return any(isinstance(place, str) and is_user_file(place) for place in places)


def _module_name(file: Path) -> tuple[str, Path | None]:
    """The dotted name, and the folder its first part lies in: None for a file outside any package."""
    parts = [] if file.name == "__init__.py" else [file.stem]
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder if folder != file.parent else None


def _extend_path(file: Path, package_root: Path | None) -> None:
    """What Python would search when running the file or its package, then the project's root and its `src`."""
    project = next((folder for folder in file.parents if any((folder / m).exists() for m in PROJECT_MARKERS)), None)
    first = [package_root or file.parent]
    last = [file.parent, Path.cwd(), *([project, project / "src"] if project else [])]
    known = set(sys.path)
    for folder in map(str, first):
        if folder not in known:
            sys.path.insert(0, folder)
            _added_paths.append(folder)
    for folder in map(str, last):
        if folder not in sys.path:
            sys.path.append(folder)
            _added_paths.append(folder)


def _loaded_from(module: types.ModuleType, file: Path, path: str) -> types.ModuleType:
    found = getattr(module, "__file__", None)
    if found is None or not Path(found).resolve().samefile(file):
        remedy = "rename the package, or uninstall the other one"
        raise LoadError(Problem(path, f"its name {module.__name__!r} belongs to another package, at {found}", remedy))
    return module


def _import_alone(file: Path) -> types.ModuleType:
    """Import a file that is in no package; folders that its relative imports reach become its packages."""
    name = file.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"audited_{name}"
    levels = _relative_levels(file)
    if levels:
        name = f"{_make_packages(file.parents[levels - 1], file.parent)}.{file.stem}"
    text = _finder.texts.get(str(file))
    loader = _TextLoader(name, str(file), text) if text is not None else None
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _relative_levels(file: Path) -> int:
    """How many folders up the file's relative imports reach."""
    text = _finder.texts.get(str(file))
    tree = ast.parse(text if text is not None else file.read_bytes(), str(file))
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _make_packages(top: Path, folder: Path) -> str:
    """Register packages for `top` down to `folder`, though they have no `__init__.py`; the name of the last."""
    name = top.name if top.name not in sys.modules else f"audited_{top.name}"
    current = top
    for part in ("", *folder.relative_to(top).parts):
        current, name = (current / part, f"{name}.{part}") if part else (current, name)
        package = types.ModuleType(name)
        package.__path__ = [str(current)]
        sys.modules[name] = package
    return name


@contextlib.contextmanager
def _importing(file: str, path: str) -> Iterator[None]:
    """Turn whatever user code raises while being imported into a LoadError."""
    arguments, sys.argv = sys.argv, [file or path]
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    except LoadError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise LoadError(_problem(error, file, path)) from error
    finally:
        sys.argv, sys.dont_write_bytecode = arguments, bytecode


def _problem(error: BaseException, file: str, path: str) -> Problem:
    if isinstance(error, SyntaxError):
        elsewhere = "" if error.filename in (None, file) else f" in {error.filename}, line {error.lineno},"
        row = 0 if elsewhere else error.lineno or 0
        return Problem(path, f"cannot be imported:{elsewhere} syntax error: {error.msg}", row=row)
    row = user_row(error, file)
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        remedy = f"install {package!r} in this environment, or run from the folder that contains it"
        return Problem(path, f"cannot be imported: there is no module named {error.name!r}", remedy, row)
    if isinstance(error, SystemExit):
        return Problem(path, f"exits (status {error.code}) while being imported", GUARD, row)
    if isinstance(error, KeyboardInterrupt):
        return Problem(path, "raises KeyboardInterrupt while being imported", GUARD, row)
    return Problem(
        path, f"cannot be imported: {summary(error)}", "make the file importable on its own, or " + GUARD, row
    )


def user_row(error: BaseException, file: str) -> int:
    """The line of `file` on which `error` came up, 0 if it did not pass there."""
    rows = [row for frame, row in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return rows[-1] if rows else 0


def summary(error: BaseException, limit: int = 300) -> str:
    """`TypeError: message`, on one line and not too long."""
    text = " ".join(str(error).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
