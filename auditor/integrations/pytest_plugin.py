"""The pytest plugin: `pytest --auditor` checks source files and audits models as tests of their own; the fixture
`assert_healthy` audits a model inside a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from auditor.report import Report

TARGETS = "auditor_targets"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("auditor", "silent mistakes in PyTorch models")
    group.addoption("--auditor", action="store_true", help="Check Python files for silent mistakes in PyTorch models.")
    group.addoption(
        "--auditor-target",
        action="append",
        default=[],
        metavar="TARGET",
        help="Also run this model and audit it: file.py, file.py::Name or package.module:Name; repeat for several.",
    )
    parser.addini(TARGETS, "models that --auditor runs and audits, one target a line", "linelist", [])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "auditor: a file checked or a model audited by auditor")


@pytest.fixture
def assert_healthy() -> Callable[..., Report]:
    """`assert_healthy(model, inputs)` fails the test if an audit of the model finds something."""
    from auditor.integrations.healthy import assert_healthy as function

    return function


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not parent.config.getoption("--auditor") or file_path.suffix != ".py":
        return None
    return SourceFile.from_parent(parent, path=file_path)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add one test for each target, whatever files were collected."""
    wanted = list(config.getoption("--auditor-target"))
    if config.getoption("--auditor"):
        wanted += config.getini(TARGETS)
    for target in dict.fromkeys(wanted):
        items.append(TargetItem.from_parent(session, name=f"auditor[{target}]", target=target))


class Unhealthy(Exception):
    """Carries the report of a failed item to where it is shown."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))


class SourceFile(pytest.File):
    """A Python file that mentions torch."""

    def collect(self) -> Iterable[pytest.Item]:
        if b"torch" in self.path.read_bytes():
            yield CheckItem.from_parent(self, name="auditor")


class _Item(pytest.Item):
    """One check or audit; it fails with the report a terminal would show."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.add_marker("auditor")

    def report(self) -> tuple[Report, int]:
        """The report, and its exit status."""
        raise NotImplementedError

    def runtest(self) -> None:
        report, status = self.report()
        if status:
            raise Unhealthy(report)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, Unhealthy):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)


class CheckItem(_Item):
    """A file's source, checked."""

    def report(self) -> tuple[Report, int]:
        from auditor.pipeline import check_paths
        from auditor.settings import load

        settings = load(self.path)
        report = check_paths([str(self.path)], settings)
        return report, report.exit_code(settings.fail_on)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"auditor check {self.path.name}"


class TargetItem(_Item):
    """A target, checked, built and run in a child process."""

    def __init__(self, *, target: str, **given: Any) -> None:
        super().__init__(**given)
        self.target = target

    def report(self) -> tuple[Report, int]:
        from auditor.pipeline import audit_targets
        from auditor.settings import load

        settings = load()
        report = audit_targets([self.target], settings)
        return report, report.exit_code(settings.fail_on)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return Path(self.target.partition("::")[0]), None, f"auditor audit {self.target}"
