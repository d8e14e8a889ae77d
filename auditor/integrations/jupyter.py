"""`%load_ext auditor`: the magics `%audit model, batch` and `%%audit` of IPython and Jupyter."""

from __future__ import annotations

import argparse
import ast
import linecache
import shlex
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from auditor.finding import Finding, Location, Note, Problem, merge
from auditor.report import Report
from auditor.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from torch import nn

    from auditor.dynamic.service import Audit
    from auditor.rule import Rule


def load_ipython_extension(shell: Any) -> None:
    """What `%load_ext auditor` calls."""
    shell.register_magic_function(lambda line: _line(shell, line), "line", "audit")
    shell.register_magic_function(lambda line, cell: _cell(shell, line, cell), "cell", "audit")


class _Refused(Exception):
    """The magic cannot do what was asked; the message says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise _Refused(message)


def _options(line: str) -> tuple[argparse.Namespace, str]:
    """The options at the beginning of a magic's line, and the rest of it."""
    parser = _Parser(prog="%audit", add_help=False, allow_abbrev=False)
    parser.add_argument("--select", action="append", default=[])
    parser.add_argument("--ignore", action="append", default=[])
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    words = line.split()
    taken = 0
    while taken < len(words) and words[taken].startswith("--"):
        taken += 1 if "=" in words[taken] else 2
    known = parser.parse_args(shlex.split(" ".join(words[:taken])))
    return known, line.split(None, taken)[-1] if len(words) > taken else ""


def _settings(options: argparse.Namespace) -> Settings:
    """The settings in force for the notebook's folder, and the magic's own."""

    def listed(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(part.strip() for value in values for part in value.split(",") if part.strip())

    settings = load()
    return settings.override(
        select=listed(options.select),
        ignore=(*settings.ignore, *listed(options.ignore)),
        device=options.device,
        dtype=options.dtype,
    )


def _shown(shell: Any, make: Callable[[], Report | None]) -> None:
    """Display the report; one line says what the user has to mend."""
    from IPython.display import display

    try:
        report = make()
    except (_Refused, SettingsError, ValueError) as error:
        print(f"auditor: {error}")
        return
    if report is not None:
        display(report)  # type: ignore[no-untyped-call]


# One model, as it is -----------------------------------------------------------------------------------------------


def _line(shell: Any, line: str) -> None:
    """`%audit model, batch`: audit a live model on inputs, both given as Python expressions."""

    def make() -> Report:
        from auditor.pipeline import audit_model

        options, rest = _options(line)
        if options.input:
            raise _Refused("`%audit model, batch` takes its inputs from the line; `--input` is for `%%audit`")
        try:
            given = shell.ev(f"({rest},)")
        except Exception as error:  # whatever the expression raises
            raise _Refused(f"{rest!r} cannot be evaluated: {type(error).__name__}: {error}") from None
        if len(given) != 2:
            raise _Refused("name a model and what to call it with: `%audit model, batch`")
        (model, batch), settings = given, _settings(options)
        return _with_cells(shell, audit_model(model, batch, settings, device=settings.device, dtype=settings.dtype))

    _shown(shell, make)


# A cell ------------------------------------------------------------------------------------------------------------


def _cell(shell: Any, line: str, cell: str) -> None:
    """`%%audit`: run the cell, check its source, and audit the models that it defines or makes."""

    def make() -> Report | None:
        options, rest = _options(line)
        if rest:
            raise _Refused(f"what is {rest!r}? `%%audit` takes options only")
        settings = _settings(options)
        if not shell.run_cell(cell, store_history=False).success:
            return None  # IPython has shown the error
        return _with_cells(shell, _audit_cell(shell, cell, settings, options.input))

    _shown(shell, make)


def _audit_cell(shell: Any, cell: str, settings: Settings, inputs: Sequence[str]) -> Report:
    from auditor.pipeline import report_of
    from auditor.static.check import check_text, chosen_rules, drop_symptoms

    text = shell.transform_cell(cell)
    path = _file_of(text)
    rules = chosen_rules(settings)
    read = check_text(path, text, rules)
    found = _run(shell, path, text, rules, settings, inputs)
    found.findings = drop_symptoms(merge([*read.findings, *found.findings]), rules)
    found.problems += read.problems
    report = report_of(found, settings)
    report.silenced += read.silenced
    return report


def _run(shell: Any, path: str, text: str, rules: Sequence[Rule], settings: Settings, inputs: Sequence[str]) -> Audit:
    """Audit the classes that the cell defines, and the models that it binds to names and no class of it explains."""
    from torch import nn

    from auditor.dynamic.service import Audit, audit_live, audit_module

    bound = [name for name in _bound(text) if name in shell.user_ns]
    values = {name: shell.user_ns[name] for name in bound}
    classes = {name for name, value in values.items() if isinstance(value, type) and issubclass(value, nn.Module)}
    found = Audit()
    if classes:
        module = _module(shell, path, classes)
        found = audit_module(module, rules, settings, inputs=inputs, facts=True)
    for name, model in values.items():
        if not isinstance(model, nn.Module) or type(model).__name__ in classes:
            continue
        live = audit_live(model, _inputs_for(name, model, inputs, settings), rules, settings, True)
        for record in live.records:
            record["name"] = f"{name} ({record['name']})"
        found.findings += [replace(finding, models=tuple(r["name"] for r in live.records)) for finding in live.findings]
        found.problems += live.problems
        found.records += live.records
    return found


def _inputs_for(name: str, model: nn.Module, inputs: Sequence[str], settings: Settings) -> Any:
    from auditor.dynamic.inputs import InputError, parse
    from auditor.dynamic.inputs.infer import infer

    if inputs:
        return parse(list(inputs)).make(seed=settings.seed, dtype=settings.dtype, device=settings.device)
    try:
        return infer(model, seed=settings.seed).to(settings.device, settings.dtype)
    except InputError as error:
        raise _Refused(f"{name}: {error}; say what it is called with: `%%audit --input 2x3x32x32`") from None


def _module(shell: Any, path: str, classes: set[str]) -> types.ModuleType:
    """The notebook's names as a module in which only the cell's models are models."""
    from torch import nn

    module = types.ModuleType("__main__")
    for name, value in shell.user_ns.items():
        is_model = isinstance(value, nn.Module) or (isinstance(value, type) and issubclass(value, nn.Module))
        if not name.startswith("_") and (not is_model or name in classes or value.__module__ != "__main__"):
            vars(module)[name] = value
    module.__file__ = path
    return module


def _bound(text: str) -> Iterator[str]:
    """The names that the cell's own statements bind, in order."""
    names: dict[str, None] = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names[node.name] = None
        for part in ast.walk(node) if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) else ():
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names[part.id] = None
    yield from names


# Cells have names ----------------------------------------------------------------------------------------------------


def _file_of(text: str) -> str:
    """The name under which IPython has compiled this cell."""
    for name, entry in reversed(linecache.cache.items()):
        if len(entry) > 2 and "".join(entry[2]).rstrip("\n") == text.rstrip("\n"):
            return name
    return "<cell>"


def _with_cells(shell: Any, report: Report) -> Report:
    """The report with the files that IPython makes up for its cells called after their numbers."""
    names: dict[str, str] = {}
    for path, text in report.texts.items():
        names[path] = _cell_name(shell, text)

    def place(location: Location) -> Location:
        return replace(location, path=names.get(location.path, location.path))

    def renamed(finding: Finding) -> Finding:
        notes = tuple(Note(place(note.location), note.message) for note in finding.notes)
        return replace(finding, location=place(finding.location), notes=notes)

    report.findings = [renamed(finding) for finding in report.findings]
    report.silenced = [renamed(finding) for finding in report.silenced]
    report.problems = [Problem(names.get(p.path, p.path), p.message, p.remedy, p.row) for p in report.problems]
    for record in report.audits:
        record["path"] = names.get(record["path"], record["path"])
    report.texts = {names[path]: text for path, text in report.texts.items()}
    return report


def _cell_name(shell: Any, text: str) -> str:
    """`In [3]`: the last cell with this source, magics of the whole cell left out; the running one if none has it."""
    history = shell.user_ns.get("In", [])
    for number in range(len(history) - 1, 0, -1):
        cell = str(history[number]).rstrip("\n")
        if text.rstrip("\n") in (cell, shell.transform_cell(cell).rstrip("\n")):
            return f"In [{number}]"
    return f"In [{len(history) - 1}]"
