"""The plugin in pytest itself."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from tests.integrations.models import SICK, WELL

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def options(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    pytester.makeini("[pytest]\n")
    pytester.makeconftest("")


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    installed = any(entry.name == "auditor" for entry in entry_points(group="pytest11"))
    own = () if installed else ("-p", "auditor.integrations.pytest_plugin")  # a checkout that was never installed
    # pytest-lsp breaks every item that is no function: it is left out.
    return pytester.runpytest_inprocess(*own, "-p", "no:cacheprovider", "-p", "no:pytest-lsp", *arguments)


def test_assert_healthy_in_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        sick=SICK,
        well=WELL,
        test_models="""
        import pytest
        import torch
        import auditor
        from sick import Sick
        from well import Well

        def test_well(assert_healthy):
            assert assert_healthy(Well(), torch.randn(4, 8)).audits

        def test_sick(assert_healthy):
            assert_healthy(Sick(), torch.randn(4, 8))

        def test_ignored():
            auditor.assert_healthy(Sick(), torch.randn(4, 8), ignore=["MOD004", "MOD010"])

        def test_cannot_run(assert_healthy):
            with pytest.raises(AssertionError, match="cannot be run"):
                assert_healthy(Well(), torch.randn(4, 7))

        def test_unknown_rule(assert_healthy):
            with pytest.raises(ValueError, match="did you mean"):
                assert_healthy(Well(), torch.randn(4, 8), select=["MOD04"])
        """,
    )
    result = run(pytester, "test_models.py")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*Sick is not healthy*", "*sick.py:12*MOD004*"])


def test_files_are_checked_as_tests_of_their_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(sick=SICK, well=WELL, plain="x = 1")
    result = run(pytester, "--auditor", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*sick.py:12:16: MOD004*", "*fix (safe): pass*"])
    assert "Traceback" not in result.stdout.str()
    assert run(pytester).ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_targets_are_built_and_run(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nauditor_targets =\n    well.py\n    sick.py::Sick\n")
    pytester.makepyfile(sick=SICK, well=WELL)
    result = run(pytester, "--auditor", "-m", "auditor", "-k", "auditor[", "-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*auditor?sick.py::Sick? FAILED*", "*seen in a run*"])
    one = run(pytester, "--auditor-target", "well.py", "-v")
    one.assert_outcomes(passed=1)


def test_settings_of_the_project_hold(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(sick=SICK)
    pytester.makepyprojecttoml('[tool.auditor]\nignore = ["MOD004"]\n')
    run(pytester, "--auditor").assert_outcomes(passed=1)
