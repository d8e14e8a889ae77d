"""What a user can set: `[tool.auditor]` in pyproject.toml, or a whole auditor.toml, merged with the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from auditor.finding import Severity


class SettingsError(ValueError):
    """The settings, or a command line option that overrides them, make no sense."""


DEFAULT_EXCLUDE = (
    ".git", ".hg", ".svn", ".venv", "venv", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    "__pycache__", "node_modules", "site-packages", "build", "dist", ".eggs", ".ipynb_checkpoints",
)  # fmt: skip
FILES = (".auditor.toml", "auditor.toml", "pyproject.toml")
"""Where settings are looked for in a folder; the first one counts."""
TARGET_KEYS: Mapping[str, tuple[type, ...]] = {"args": (list,), "kwargs": (dict,), "input": (str, list)}


ALL = "all"
"""The device that stands for every one there is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set. Field names are the keys of `[tool.auditor]`, with `-` for `_`.

    The text below each field is its documentation (see auditor/schema.py).
    """

    extend: str = ""
    """A settings file to start from, relative to this one. What this file sets replaces what that file sets, except
    that `extend-select` and `extend-exclude` add to it and the entries of tables are merged."""
    select: tuple[str, ...] = ("ALL",)
    """The rules to apply: codes (`MOD004`), beginnings of codes (`MOD`), names, or `ALL`."""
    ignore: tuple[str, ...] = ()
    """Rules not to apply. Where a rule is selected and ignored, the more specific of the two wins."""
    extend_select: tuple[str, ...] = ()
    """Rules to apply as well as those of `select`."""
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rules not to apply to some files: patterns of paths (`tests/*`), each with a list of rules."""
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    """Files and folders left out when folders are searched: names (`build`) or paths from the settings file's folder
    (`src/generated`), with `*` and `?`."""
    extend_exclude: tuple[str, ...] = ()
    """Files and folders to leave out as well as those of `exclude`."""
    force_exclude: bool = False
    """Whether excluded files are left out even where they are named on the command line, as pre-commit does."""
    respect_gitignore: bool = True
    """Whether files that .gitignore files name are left out when folders are searched."""
    fail_on: Severity = Severity.WARNING
    """The severity from which findings make a run fail."""
    rules: tuple[str, ...] = ()
    """Folders of your own rules, relative to the settings file."""
    baseline: str = ""
    """The file of known findings, relative to the settings file. Default: `.auditor-baseline.json` beside it, if there
    is one."""
    target_torch: str = ""
    """The lowest torch that the code is to run with, such as `"2.4"`: rules for other versions are silent. Default:
    what the project's requirements allow, else the torch installed, else the newest known."""
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How `auditor audit` builds and feeds a model, by its name: `args` and `kwargs` of the constructor, `input` (one
    specification such as `"8x3x32x32"`, or a list of them)."""
    device: str = "cpu"
    """The device on which models are run: `cpu`, `cuda`, `cuda:1`, `mps`; or `all`: audited on the CPU, and every fix
    proven on the CPU and on each kind of accelerator that is there."""
    dtype: str = field(default="float32", metadata={"choices": ("float32", "float64", "bfloat16", "float16")})
    """The number format in which models are run."""
    compile: bool = False
    """Whether fixes that keep outputs are proven under `torch.compile` as well."""
    seed: int = 0
    """The seed of every random draw."""
    batch_size: int = field(default=0, metadata={"minimum": 0})
    """The batch size that models are trained with, on one device: inferred inputs get it, and rules on BatchNorm judge
    it. 0: not known."""
    weights: str = ""
    """A file of weights (`.safetensors`, or what `torch.save` wrote) that every audited model is loaded with, relative
    to the folder in which auditor is run."""
    timeout: float = field(default=120.0, metadata={"above": 0})
    """Time limit for each target, in seconds."""
    memory: float = field(default=8.0, metadata={"above": 0})
    """Memory limit of the child process that runs models, in GiB."""
    jobs: int = field(default=0, metadata={"minimum": 0})
    """The number of processes that read files; 0: one per processor."""
    cache: bool = True
    """Whether what files gave is kept between runs of `auditor check`, so that only what has changed is read again."""
    file: str = ""
    """Where these settings were read; empty for the defaults. Not a key."""
    target_torch_from: str = ""
    """What says `target_torch`. Not a key."""

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


_FOUND = ("file", "target_torch_from")  # fields that no user sets


def keys() -> dict[str, Any]:
    """The fields of Settings by their keys in a settings file."""
    return {item.name.replace("_", "-"): item for item in fields(Settings) if item.name not in _FOUND}


# Files ---------------------------------------------------------------------------------------------------------------


def discover(start: Path) -> Path | None:
    """The nearest settings file from `start` upwards; a pyproject.toml counts if it has a `[tool.auditor]` table."""
    folder = start if start.is_dir() else start.parent
    for candidate in (folder, *folder.parents):
        for name in FILES:
            path = candidate / name
            if path.is_file() and (name != "pyproject.toml" or b"tool.auditor" in path.read_bytes()):
                return path
    return None


def load(start: Path | None = None, file: Path | None = None) -> Settings:
    """The settings in force for `start` (default: the current folder), or those of `file`.

    Raises SettingsError for an unreadable file, an unknown key, a value of the wrong kind, or files that extend each
    other in a circle.
    """
    path = file or discover((start or Path.cwd()).absolute())
    return Settings() if path is None else Settings(**_values(path, ()), file=str(path))


def _values(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """The fields that a settings file and those it extends set. `extending`: the files that led here."""
    chain = (*extending, Path(os.path.realpath(path)))
    if chain[-1] in extending:
        circle = " → ".join(str(item) for item in chain[chain.index(chain[-1]) :])
        raise SettingsError(f"{path}: settings files extend each other in a circle: {circle}")
    values = parse(_table(path, extending), path)
    if not values.get("extend"):
        return values
    base = Path(values["extend"])
    if not base.is_file():
        raise SettingsError(f"{path}: extend: there is no file {base}")
    return _merged(_values(base, chain), values)


def _table(path: Path, extending: tuple[Path, ...]) -> Mapping[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if path.name != "pyproject.toml":
        return document
    table = document.get("tool", {}).get("auditor")
    if table is None and extending:
        raise SettingsError(f"{path}: {extending[-1]} extends it, but it has no [tool.auditor]")
    if not isinstance(table, dict | None):
        raise SettingsError(f"{path}: tool.auditor is no table")
    return table or {}


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a file sets over what the file it extends sets."""
    merged = {**base, **own}
    for name in base.keys() & own.keys():
        if name.startswith("extend_"):
            merged[name] = (*base[name], *own[name])
        elif isinstance(base[name], Mapping):
            merged[name] = {**base[name], **own[name]}
    return merged


class Nearest:
    """The settings for each file of a run: those of the settings file nearest to it, overridden as the run's are.

    `settings` are those of the run; without `override` they hold for every file.
    """

    def __init__(self, settings: Settings, override: Callable[[Settings], Settings] | None = None) -> None:
        self.settings = settings
        self.override = override
        self.of_folder = cache(self._of_folder)

    def of(self, path: str) -> Settings:
        """The settings for a file."""
        return self.of_folder(os.path.dirname(path)) if self.override else self.settings

    def groups(self, paths: Sequence[str]) -> list[tuple[Settings, list[str]]]:
        """The files that have the same settings, together, in the order of `paths`."""
        found: dict[str, tuple[Settings, list[str]]] = {}
        for path in paths:
            settings = self.of(path)
            found.setdefault(settings.file, (settings, []))[1].append(path)
        return list(found.values())

    def _of_folder(self, folder: str) -> Settings:
        if self.override is None:
            return self.settings
        absolute = os.path.abspath(folder)
        above = os.path.dirname(absolute)
        if above != absolute and not any(os.path.exists(os.path.join(absolute, name)) for name in FILES):
            return self.of_folder(above)
        file = discover(Path(absolute))
        if file is None or str(file) == self.settings.file:
            return self.settings
        return self.override(load(file=file))


# Keys and values -----------------------------------------------------------------------------------------------------


def parse(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields that a table sets; relative paths in it count from the folder of `path`. SettingsError says what is
    wrong, and where."""
    known = keys()
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            hint = "; its keys stand without [tool.auditor] in this file" if key == "tool" else _hint(key, known)
            raise SettingsError(f"{path}: unknown key {key!r} in [tool.auditor]{hint}")
        try:
            values[known[key].name] = _convert(known[key], value, path)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{path}: {key}: {error}") from error
    return values


def _hint(key: str, known: Mapping[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _convert(item: Any, value: Any, path: Path) -> Any:
    default = getattr(Settings(), item.name)
    if item.name == "target_torch":
        from auditor.torch_version import parse as parse_version

        parse_version(_typed(value, str))
        return value
    if item.name == "fail_on":
        return Severity.parse(_typed(value, str))
    if item.name in ("baseline", "extend"):
        return _beside(path, _typed(value, str))
    if item.name == "rules":
        return tuple(_beside(path, _typed(folder, str)) for folder in _typed(value, list))
    if item.name == "per_file_ignores":
        return {
            pattern: tuple(_typed(code, str) for code in _typed(codes, list))
            for pattern, codes in _typed(value, dict).items()
        }
    if item.name == "targets":
        return {name: _target(name, _typed(table, dict)) for name, table in _typed(value, dict).items()}
    if isinstance(default, tuple):
        return tuple(_typed(item, str) for item in _typed(value, list))
    value = float(_typed(value, (int, float))) if isinstance(default, float) else _typed(value, type(default))
    return _in_range(value, item.metadata)


def _beside(path: Path, value: str) -> str:
    """A path in a settings file counts from the file's folder; empty stays empty."""
    return os.path.normpath(os.path.join(path.parent, os.path.expanduser(value))) if value else ""


def _target(name: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    for key, value in table.items():
        if key not in TARGET_KEYS:
            raise ValueError(f"{name}: unknown key {key!r}{_hint(key, TARGET_KEYS)}")
        _typed(value, TARGET_KEYS[key])
    return table


def _in_range(value: Any, limits: Mapping[str, Any]) -> Any:
    if "choices" in limits and value not in limits["choices"]:
        raise ValueError(f"{value!r} is none of {', '.join(limits['choices'])}")
    if "above" in limits and not value > limits["above"]:
        raise ValueError(f"must be above {limits['above']}, found {value}")
    if "minimum" in limits and value < limits["minimum"]:
        raise ValueError(f"must be at least {limits['minimum']}, found {value}")
    return value


def _typed(value: Any, kind: type | tuple[type, ...]) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"expected {' or '.join(k.__name__ for k in kinds)}, found {type(value).__name__} {value!r}")
    return value
