"""Which models a file offers, and how each is built and called."""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.dynamic.file_syntax import assignment_row, needs_nothing, returns_one_of, row_of, shapes_made, syntax_of
from auditor.finding import Location, Problem

if TYPE_CHECKING:
    from torch import nn

    from auditor.dynamic.arguments import Call, Scope
    from auditor.dynamic.build import BuildLog
    from auditor.dynamic.deferred import Deferral
    from auditor.dynamic.inputs import Inputs

TOO_MUCH = 40  # constructions tried for one class
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One model to audit.

    `name` is the user's name for it, `path` its file (absolute) and `row` its line there, `model_class` the qualified
    class name of what is built, `arguments` the printable arguments of its construction and `arguments_from` where
    they come from: "defaults", "configured", "example", "file", "inferred" or "instance".
    """

    name: str
    path: str
    row: int
    model_class: str
    arguments: str
    arguments_from: str
    factory: Callable[[], Any] = field(repr=False)
    module: types.ModuleType = field(repr=False)
    input: str | tuple[str, ...] = ()
    large: bool = False
    """Whether its parameters are too large for the memory limit: see `build_deferred` and `large.py`."""

    @property
    def location(self) -> Location:
        """The line that defines the model."""
        return Location(self.path, self.row)

    def build(self, seed: int = 0) -> tuple[nn.Module, BuildLog]:
        """Construct the model under recorders; raises what the constructor raises."""
        from auditor.dynamic.build import build

        return build(self.factory, seed, path=self.path)

    def build_deferred(self, seed: int = 0) -> tuple[nn.Module, BuildLog, Deferral]:
        """Construct the model with no memory for its weights; raises what the constructor raises."""
        from auditor.dynamic.build import build_deferred

        return build_deferred(self.factory, seed, path=self.path)

    def inputs(
        self,
        model: nn.Module,
        given: str | Sequence[str] = (),
        *,
        seed: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        batch_size: int = 0,
    ) -> Inputs:
        """What to call `model` (as built by `build`) with.

        In this order: `given`, the target's configured input, a hook (`example_inputs` of the model or its module,
        `example_input_array`, `dummy_inputs`), inference. Raises ValueError for a bad specification, InputError when
        nothing is found. Inferred inputs have `batch_size` samples, if that is given.
        """
        from auditor.dynamic.inputs import parse, rebatched
        from auditor.dynamic.inputs.infer import from_hooks, infer

        spec = given or self.input
        device = "meta" if self.large else device
        if spec:
            return parse(spec).make(seed=seed, dtype=dtype, device=device)
        hooked = from_hooks(model, self.module, seed) if not self.large else None
        found = hooked or infer(
            model, seed=seed, hints=shapes_made(self.module), device="meta" if self.large else "cpu"
        )
        if batch_size and found.source == "inferred":
            return rebatched(found, batch_size, seed=seed, dtype=dtype, device=device)
        return found.to(device, dtype)


def find_targets(
    spec: str,
    configured: Settings | None = None,
    text: str | Mapping[str, str] | None = None,
    limit: float = math.inf,
) -> tuple[list[Target], list[Problem]]:
    """The models that `spec` (`file.py`, `file.py::Name`, `pkg.module:Name`) offers, and what stood in the way.

    `configured` holds `[tool.auditor.targets]`, by model name. `text` replaces the content of the file, or of several
    files when it maps paths to texts. A model with parameters of more than `limit` bytes is constructed without memory
    for them, and its target says so (`large`). Runs the user's code.
    """
    from auditor.dynamic.load import LoadError, load_file, load_module

    place, name, is_file = split_spec(spec)
    texts = {place: text} if isinstance(text, str) else dict(text or {})
    try:
        module = load_file(place, texts) if is_file else load_module(place, texts)
    except LoadError as error:
        return [], [error.problem]
    finder = _Finder(module, place, is_file, configured or {}, texts, limit)
    if name:
        finder.named(name)
    else:
        finder.every()
    return finder.targets, finder.problems


def targets_of(module: types.ModuleType, configured: Settings | None = None) -> tuple[list[Target], list[Problem]]:
    """The models that the classes of a module in memory offer (the cell of a notebook; its `__file__` is where
    `linecache` knows its text), and what stood in the way. Constructs the models."""
    finder = _Finder(module, str(module.__file__), True, configured or {}, {}, math.inf)
    finder.every()
    return finder.targets, finder.problems


def split_spec(spec: str) -> tuple[str, str, bool]:
    """File or dotted module, name in it (or ""), and whether the first is a file."""
    if "::" in spec:
        place, _, name = spec.rpartition("::")
        return place, name, True
    if spec.endswith(".py") or os.sep in spec or "/" in spec or os.path.exists(spec):
        return spec, "", True
    place, _, name = spec.partition(":")
    return place, name, False


class _Finder:
    """Finds the targets of one module; what cannot be built becomes a problem."""

    def __init__(
        self,
        module: types.ModuleType,
        place: str,
        is_file: bool,
        configured: Settings,
        texts: Mapping[str, str],
        limit: float,
    ) -> None:
        from auditor.dynamic.arguments import Scope

        self.module = module
        self.place = place
        self.is_file = is_file
        self.configured = configured
        self.texts = texts
        self.limit = limit
        self.file = str(Path(getattr(module, "__file__", None) or place).resolve())
        self.tree = syntax_of(module)
        self.scope: Scope = Scope(module, self.tree)
        self.targets: list[Target] = []
        self.problems: list[Problem] = []
        self.parts: dict[str, set[type]] = {}

    def problem(self, message: str, remedy: str, row: int = 0) -> None:
        self.problems.append(Problem(self.place, message, remedy, row))

    # One name ----------------------------------------------------------------------------------------------------

    def named(self, name: str) -> None:
        from torch import nn

        value: Any = self.module
        for part in name.split("."):
            if not hasattr(value, part):
                return self._unknown(name)
            value = getattr(value, part)
        if isinstance(value, nn.Module):
            self._add_instance(name, value)
        elif isinstance(value, type) and issubclass(value, nn.Module):
            self._add_class(name, value)
        elif callable(value) and not isinstance(value, type):
            self._add_function(name, value)
        else:
            kind = f"the class {name}" if isinstance(value, type) else f"a {type(value).__name__}"
            self.problem(
                f"{name!r} is {kind}, not a model",
                "name a torch.nn.Module subclass, a function that returns one, or an instance",
            )

    def _unknown(self, name: str) -> None:
        from torch import nn

        known = [
            key
            for key, value in vars(self.module).items()
            if isinstance(value, nn.Module)
            or (
                callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == self.module.__name__
            )
        ]
        close = difflib.get_close_matches(name, known, 1, 0.5)
        lowered = [key for key in known if key.lower() == name.lower()]
        hint = (
            f"did you mean {(lowered or close)[0]!r}?"
            if lowered or close
            else f"it defines {', '.join(known) or 'none'}"
        )
        self.problem(f"there is no {name!r} in it", hint)

    # All of a file -----------------------------------------------------------------------------------------------

    def every(self) -> None:
        """Every class that can be built and is no part of another; factories and instances where classes fail."""
        classes = self._classes()
        failures: dict[str, Problem] = {}
        for models in (False, True):  # those that wrap a model of the file are tried once the others are known
            self.scope = self._scope_with_models() if models else self.scope
            for cls in reversed(classes):
                if self._done(cls) or (models and cls.__name__ not in failures):
                    continue
                before = len(self.problems)
                self._add_class(cls.__name__, cls)
                for problem in self.problems[before:]:
                    failures[cls.__name__] = problem
                del self.problems[before:]
                if self._done(cls):
                    failures.pop(cls.__name__, None)
        self._replace_failures(classes, failures)
        self._drop_parts()
        self.problems += [p for name, p in failures.items() if not self._is_base(name, classes)]
        self.targets.sort(key=lambda target: target.row)
        self.problems.sort()
        if not self.targets and not self.problems:
            remedy = "name one, as in `file.py::Net` or `file.py::make_net`"
            self.problem("it defines no torch.nn.Module that could be audited", remedy)

    def _classes(self) -> list[type[nn.Module]]:
        """Module subclasses defined in this file that have a forward, in order of definition."""
        from torch import nn

        found = {
            value: row_of(value)
            for value in vars(self.module).values()
            if isinstance(value, type)
            and issubclass(value, nn.Module)
            and value.__module__ == self.module.__name__
            and value.forward is not nn.Module.forward
            and not inspect.isabstract(value)
        }
        return sorted(found, key=lambda cls: found[cls])

    def _scope_with_models(self) -> Scope:
        from auditor.dynamic.arguments import Argument, Scope

        self._drop_parts()
        known = sorted(self.targets, key=lambda target: target.row)
        models = tuple(Argument(f"{target.name}({target.arguments})", target.factory) for target in known)
        return Scope(self.module, self.tree, models)

    def _done(self, cls: type) -> bool:
        """Whether this class is a target, or part of one."""
        return any(target.model_class == qualified(cls) for target in self.targets) or any(
            cls in parts for parts in self.parts.values()
        )

    def _replace_failures(self, classes: list[type[nn.Module]], failures: dict[str, Problem]) -> None:
        """Cover the classes that could not be built by instances and argument-free factories of the file."""
        from torch import nn

        if classes and not failures:
            return
        covered = {cls.__name__: cls for cls in classes}
        found: list[tuple[str, Any]] = [(n, v) for n, v in vars(self.module).items() if isinstance(v, nn.Module)]
        found += [(name, getattr(self.module, name)) for name in self._factories()]
        for name, value in found:
            before = len(self.problems)
            (self._add_instance if isinstance(value, nn.Module) else self._add_function)(name, value)
            if len(self.problems) > before and classes:
                del self.problems[before:]
            for failed in [failed for failed in failures if self._done(covered[failed])]:
                del failures[failed]
            if classes and not failures:
                return

    def _factories(self) -> list[str]:
        """Functions of the file without required arguments whose code or annotation says that they return a model."""
        from torch import nn

        if self.tree is None:
            return []
        functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        models = {
            name
            for name, value in vars(self.module).items()
            if isinstance(value, type) and issubclass(value, nn.Module)
        }
        makers: set[str] = set()
        while True:
            more = {n for n, node in functions.items() if n not in makers and returns_one_of(node, models | makers)}
            if not more:
                break
            makers |= more
        return [name for name, node in functions.items() if name in makers and needs_nothing(node)]

    def _drop_parts(self) -> None:
        """Leave out targets that another target contains."""
        inside = {name: {qualified(cls) for cls in parts} for name, parts in self.parts.items()}
        self.targets = [
            target
            for target in self.targets
            if not any(
                target.model_class in inside[other.name] and other.model_class not in inside[target.name]
                for other in self.targets
            )
        ]

    def _is_base(self, name: str, classes: list[type[nn.Module]]) -> bool:
        """Whether a class that cannot be built is the base of others: then it was never meant to be."""
        cls = getattr(self.module, name)
        return any(other is not cls and issubclass(other, cls) for other in classes)

    # Building ----------------------------------------------------------------------------------------------------

    def _add_class(self, name: str, cls: type[nn.Module]) -> None:
        from auditor.dynamic.arguments import calls, configured_call

        settings = self._settings(name)
        if settings is not None and ("args" in settings or "kwargs" in settings):
            return self._add_first(name, cls, row_of(cls), iter([configured_call(settings)]))
        example = inspect.getattr_static(cls, "example", None)
        if isinstance(example, (staticmethod, classmethod)):
            return self._add(name, cls.example, row_of(cls), f"{name}.example()", "example")  # type: ignore[attr-defined]
        module_example = getattr(self.module, "example_model", None)
        if callable(module_example) and getattr(module_example, "__module__", "") == self.module.__name__:
            built = self._try(module_example)
            if isinstance(built, cls):
                return self._add(name, module_example, row_of(cls), "example_model()", "example")
        self._add_first(name, cls, row_of(cls), calls(cls, self.scope))

    def _add_function(self, name: str, function: Callable[..., Any]) -> None:
        from auditor.dynamic.arguments import calls, configured_call

        settings = self._settings(name)
        if settings is not None and ("args" in settings or "kwargs" in settings):
            ways: Iterator[Call] = iter([configured_call(settings)])
        else:
            ways = calls(function, self.scope)
        self._add_first(name, function, row_of(function), ways)

    def _add_instance(self, name: str, value: nn.Module) -> None:
        """An instance was made while the file was imported: importing it again makes it again."""
        from auditor.dynamic.load import load_file, load_module

        def again() -> Any:
            found: Any = (load_file if self.is_file else load_module)(self.place, self.texts)
            for part in name.split("."):
                found = getattr(found, part)
            return found

        self._keep(name, again, value, assignment_row(self.tree, name), "", "instance")

    def _add_first(self, name: str, function: Callable[..., Any], row: int, ways: Iterator[Call]) -> None:
        """Add the first way of calling `function` that builds a model; a problem if none does."""
        from auditor.dynamic.arguments import completed

        first: tuple[Call, BaseException] | None = None
        for call in _at_most(ways, TOO_MUCH):
            factory = _factory(call, function)
            built = self._try(factory)
            while isinstance(built, BaseException) and (more := completed(call, built, function, self.scope)):
                call, factory = more, _factory(more, function)
                built = self._try(factory)
            if not isinstance(built, BaseException):
                return self._keep(name, factory, built, row, str(call), call.source)
            first = first or (call, built)
        self._cannot_build(name, function, row, first)

    def _add(self, name: str, factory: Callable[[], Any], row: int, arguments: str, source: str) -> None:
        built = self._try(factory)
        if isinstance(built, BaseException):
            from auditor.dynamic.load import summary

            return self.problem(f"{arguments} failed: {summary(built)}", "return an instance of the model from it", row)
        self._keep(name, factory, built, row, arguments, source)

    def _try(self, factory: Callable[[], Any]) -> nn.Module | BaseException:
        from auditor.dynamic.build import TooLarge, build_deferred, construct, limited
        from auditor.dynamic.worker import out_of_memory

        try:
            try:
                with limited(self.limit):
                    return construct(factory)
            except TooLarge:
                return build_deferred(factory)[0]
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if out_of_memory(error):
                raise MemoryError(str(error)) from error  # no fault of the arguments: other ones are not tried
            return error

    def _keep(
        self, name: str, factory: Callable[[], Any], built: nn.Module, row: int, arguments: str, source: str
    ) -> None:
        cls = type(built)
        self.parts[name] = {type(module) for module in built.modules() if module is not built} - {cls}
        settings = self._settings(name) or {}
        given = settings.get("input", ())
        self.targets.append(
            Target(
                name=name,
                path=self.file,
                row=row,
                model_class=qualified(cls),
                arguments=arguments,
                arguments_from=source,
                factory=factory,
                module=self.module,
                input=given if isinstance(given, str) else tuple(given),
                large=any(parameter.is_meta for parameter in built.parameters()),
            )
        )

    def _cannot_build(
        self, name: str, function: Callable[..., Any], row: int, first: tuple[Call, BaseException] | None
    ) -> None:
        from auditor.dynamic.arguments import required_names
        from auditor.dynamic.load import summary

        remedy = (
            f"write its arguments into the settings, as in `[tool.auditor.targets.{name}]` `kwargs = {{ … }}`, "
            "or give the class a static method `example()` that returns an instance"
        )
        if first is None:
            needed = ", ".join(required_names(function))
            return self.problem(f"{name} could not be built: no value could be inferred for {needed}", remedy, row)
        call, error = first
        if isinstance(error, TypeError) and not isinstance(function, type) and "not a torch.nn.Module" in str(error):
            remedy = "name a torch.nn.Module subclass, a function that returns one, or an instance"
            return self.problem(f"{name}() is no model: {error}", remedy, row)
        if call.source == "defaults":
            remedy = "this happens with its default arguments: mend it, or " + remedy
        self.problem(f"{name} could not be built: {name}({call}) raised {summary(error)}", remedy, row)

    def _settings(self, name: str) -> Mapping[str, Any] | None:
        return self.configured.get(name) or self.configured.get(f"{self.place}::{name}")


def qualified(cls: type) -> str:
    """The class's name with its module's: `net.Block`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _factory(call: Call, function: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: call.apply(function)


def _at_most(ways: Iterator[Call], count: int) -> Iterator[Call]:
    for _, call in zip(range(count), ways, strict=False):
        yield call
