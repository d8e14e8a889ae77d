"""`[tool.auditor]` in pyproject.toml, merged with the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from auditor.finding import Severity


class SettingsError(ValueError):
    """The settings, or a command line option that overrides them, make no sense."""


DEFAULT_EXCLUDE = (
    ".git", ".hg", ".svn", ".venv", "venv", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    "__pycache__", "node_modules", "site-packages", "build", "dist", ".eggs", ".ipynb_checkpoints",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set. Field names are the keys of `[tool.auditor]`, with `-` for `_`."""

    select: tuple[str, ...] = ("ALL",)
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    extend_exclude: tuple[str, ...] = ()
    force_exclude: bool = False
    respect_gitignore: bool = True
    fail_on: Severity = Severity.WARNING
    rules: tuple[str, ...] = ()
    baseline: str = ""
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    timeout: float = 120.0
    memory: float = 8.0
    jobs: int = 0
    file: str = ""
    """Where these settings were read; empty for the defaults."""

    def override(self, **options: Any) -> Settings:
        """These settings with every option that is neither None nor empty put in their place."""
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        return replace(self, **given) if given else self

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes equal settings, in another process."""
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"fail_on": str(self.fail_on)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        values["fail_on"] = Severity.parse(data["fail_on"])
        return cls(**values)

    @property
    def root(self) -> Path:
        """The folder that relative patterns of the settings refer to."""
        return Path(self.file).parent if self.file else Path.cwd()


def discover(start: Path) -> Path | None:
    """The nearest pyproject.toml with a `[tool.auditor]` table, from `start` upwards."""
    folder = start if start.is_dir() else start.parent
    for candidate in (folder, *folder.parents):
        path = candidate / "pyproject.toml"
        if path.is_file() and b"tool.auditor" in path.read_bytes():
            return path
    return None


def load(start: Path | None = None, file: Path | None = None) -> Settings:
    """The settings in force for `start` (default: the current folder), or those of `file`.

    Raises SettingsError for an unreadable file, an unknown key or a value of the wrong kind.
    """
    path = file or discover((start or Path.cwd()).absolute())
    if path is None:
        return Settings()
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    table = document.get("tool", {}).get("auditor", {}) if path.name == "pyproject.toml" else document
    return replace(_parse(table, path), file=str(path))


def _parse(table: Mapping[str, Any], path: Path) -> Settings:
    known = {item.name.replace("_", "-"): item for item in fields(Settings) if item.name != "file"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            import difflib

            close = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
            raise SettingsError(f"{path}: unknown key {key!r} in [tool.auditor]{hint}")
        try:
            values[known[key].name] = _convert(known[key].name, value, path)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{path}: {key}: {error}") from error
    return Settings(**values)


def _convert(name: str, value: Any, path: Path) -> Any:
    default = getattr(Settings(), name)
    if name == "fail_on":
        return Severity.parse(_typed(value, str))
    if name == "baseline":
        return os.path.join(path.parent, _typed(value, str))
    if name == "rules":
        return tuple(os.path.join(path.parent, _typed(folder, str)) for folder in _typed(value, list))
    if name == "per_file_ignores":
        return {pattern: tuple(_typed(codes, list)) for pattern, codes in _typed(value, dict).items()}
    if isinstance(default, tuple):
        return tuple(_typed(item, str) for item in _typed(value, list))
    if isinstance(default, float):
        return float(_typed(value, (int, float)))
    return _typed(value, dict if isinstance(default, Mapping) else type(default))


def _typed(value: Any, kind: type | tuple[type, ...]) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"expected {' or '.join(k.__name__ for k in kinds)}, found {type(value).__name__} {value!r}")
    return value
