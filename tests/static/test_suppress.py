"""Comments that silence findings: read where they are comments, reported and removed where they do nothing."""

from __future__ import annotations

from auditor.fix.engine import fix_text
from auditor.static.check import check_text
from auditor.static.suppress import comments
from tests.fixtures import BY_CODE, RULES

NORM = "import torch\n\n\ndef scale(x):\n    return torch.norm(x)"
UNUSED = [BY_CODE["SUP001"], BY_CODE["API003"], BY_CODE["MOD004"], BY_CODE["MOD001"]]


def codes(text: str, rules=RULES) -> list[str]:
    return [finding.code for finding in check_text("net.py", text, rules).findings]


def test_comments_and_strings() -> None:
    text = 'a = "# noqa: API003"\nb = 1  # why  # noqa: API003, E501 (long)\n# auditor: ignore-file[norm-x]\n'
    first, second = comments(text)
    assert (first.row, [code for code, _, _ in first.codes], first.whole_file) == (2, ["API003", "E501"], False)
    assert text.split("\n")[1][first.start : first.end] == "# noqa: API003, E501"
    assert (second.row, [code for code, _, _ in second.codes], second.whole_file) == (3, ["norm-x"], True)


def test_file_level() -> None:
    assert codes(f"# auditor: ignore-file[API003]\n{NORM}\n") == []
    assert codes("import torch\n# auditor: ignore-file[API003]\n") == ["SUP001"]
    outcome = fix_text("net.py", "import torch\n# auditor: ignore-file[API003]\nx = 1\n", RULES)
    assert outcome.text == "import torch\nx = 1\n"
    assert codes("import torch\n# auditor: ignore-file[API999]\n") == ["SUP002"]


def test_only_rules_that_were_applied() -> None:
    text = "import torch\nx = 1  # noqa: API003, MOD004, MOD001\n"
    (finding,) = check_text("net.py", text, UNUSED).findings
    assert finding.message == "`API003`, `MOD001` finds nothing on this line"  # MOD004 also looks at runs
    assert codes(text, [BY_CODE["SUP001"]]) == []


def test_both_lines_of_a_range_count() -> None:
    for text in ("torch.norm(  # noqa: API003\n    x\n)", "torch.norm(\n    x\n)  # noqa: API003"):
        assert codes(f"import torch\nx = torch.ones(3)\ny = {text}\n") == []
    text = "import torch\nx = torch.ones(3)\ny = torch.norm(\n    x,  # noqa: API003\n)\n"
    assert sorted(codes(text)) == ["API003", "SUP001"]


def test_other_tools_codes_stay() -> None:
    text = f"{NORM} * 2  # noqa: E501, API005, API003\n"
    assert fix_text("net.py", text, RULES).text == f"{NORM} * 2  # noqa: E501, API003\n"
    text = "import torch\nα = 'ß'  # type: ignore  # NOQA:API005,W291\n"
    assert fix_text("net.py", text, RULES).text == text.replace("API005,W291", "W291")


def test_a_comment_that_is_needed_is_not_touched_while_code_is_mended() -> None:
    text = f"{NORM}  # noqa: API005\n"
    fixed = fix_text("net.py", text, RULES).text
    assert fixed == f"{NORM.replace('torch.norm', 'torch.linalg.vector_norm')}\n"


def test_itself_can_be_silenced() -> None:
    assert codes("import torch\nx = 1  # noqa: API003, SUP001\n") == []
