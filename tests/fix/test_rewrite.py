from __future__ import annotations

import ast
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.fix import edit
from auditor.fix.edit import Edit
from auditor.fix.rewrite import EditError, apply, text_edits


def calls(text: str) -> list[ast.Call]:
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset, -(node.end_col_offset or 0)))


def body(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def set_training(text: str) -> str:
    return apply(text, [edit.set_argument(calls(text)[0], "training", "self.training")])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f()", "f(training=self.training)"),
        ("f(a)", "f(a, training=self.training)"),
        ("f(a, b=1,)", "f(a, b=1, training=self.training,)"),
        ("f(a, training=True)", "f(a, training=self.training)"),
        ("f(a, training = (True), c=2)", "f(a, training = self.training, c=2)"),
        ("f(a, **rest)", "f(a, training=self.training, **rest)"),
        ("f(**rest)", "f(training=self.training, **rest)"),
        ("f(*a)", "f(*a, training=self.training)"),
        ("f(x for x in y)", "f((x for x in y), training=self.training)"),
        ("f(\n    a,\n    b,  # why\n)", "f(\n    a,\n    b,  # why\n    training=self.training,\n)"),
        ("f(\n    a,\n    b  # why\n)", "f(\n    a,\n    b,  # why\n    training=self.training\n)"),
        ("f(\n    a, b\n)", "f(\n    a, b, training=self.training\n)"),
        ("f(\n    a\n)", "f(\n    a,\n    training=self.training\n)"),
        ("f(a,\n  b)", "f(a,\n  b,\n  training=self.training)"),
        ("f(\n    a,  # one\n    **rest,\n)", "f(\n    a,  # one\n    training=self.training,\n    **rest,\n)"),
    ],
)
def test_set_argument(before: str, after: str) -> None:
    assert set_training(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(a=1)", "f()"),
        ("f(b, a=1)", "f(b)"),
        ("f(b, a=1,)", "f(b,)"),
        ("f(a=1, b=2)", "f(b=2)"),
        ("f(b, a=1, c=2)", "f(b, c=2)"),
        ("f(b, a=1,\n  c=3)", "f(b,\n  c=3)"),
        ("f(\n    b,  # keep\n    a=1,  # gone\n)", "f(\n    b,  # keep\n)"),
        ("f(\n    b,  # keep\n    a=1  # gone\n)", "f(\n    b  # keep\n)"),
        ("f(\n    a=1,\n)", "f()"),
    ],
)
def test_remove_argument(before: str, after: str) -> None:
    assert apply(before, [edit.remove_argument(calls(before)[0], "a")]) == after


def test_removing_an_argument_that_is_not_there_is_refused() -> None:
    with pytest.raises(EditError, match="passes no `a`"):
        apply("f(b=1)", [edit.remove_argument(calls("f(b=1)")[0], "a")])


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        ("y = -HERE", "a + b", "y = -(a + b)"),
        ("y = f(HERE)", "a + b", "y = f(a + b)"),
        ("y = f(HERE)", "a, b", "y = f((a, b))"),
        ("y = HERE.real", "1", "y = (1).real"),
        ("y = HERE ** 2", "torch.f(x)", "y = torch.f(x) ** 2"),
        ("y = (HERE)", "a if b else c", "y = (a if b else c)"),
        ("y = (  # note\n    HERE\n)", "f(x)", "y = (  # note\n    f(x)\n)"),
        ("y = not HERE", "a or\\\n b", "y = not (a or\\\n b)"),
        ("if HERE: pass", "a :=  1", "if (a :=  1): pass"),
        ("x = [HERE, 1]", "a +\n  b", "x = [(a +\n  b), 1]"),
        ("é = 'ü', HERE  # ö", "f(é)", "é = 'ü', f(é)  # ö"),
    ],
)
def test_replace_expression(before: str, new: str, after: str) -> None:
    here = next(node for node in ast.walk(ast.parse(before)) if isinstance(node, ast.Name) and node.id == "HERE")
    assert apply(before, [edit.replace(here, new)]) == after


def test_replace_tuple_with_its_own_parentheses() -> None:
    text = "y = f((1, 2))"
    assert apply(text, [edit.replace(calls(text)[0].args[0], "z")]) == "y = f(z)"


def test_replace_statement() -> None:
    text = "def f(x):\n    # why\n    return x  # c\n"
    function = body(text)[0]
    assert isinstance(function, ast.FunctionDef)
    assert apply(text, [edit.replace(function.body[0], "y = x\nreturn y")]) == (
        "def f(x):\n    # why\n    y = x\n    return y  # c\n"
    )


def test_a_replaced_definition_keeps_its_decorators() -> None:
    text = "@torch.no_grad()\n# note\ndef f(x):\n    return x\n"
    assert apply(text, [edit.replace(body(text)[0], "def f(y):\n    return y")]) == (
        "@torch.no_grad()\ndef f(y):\n    return y\n"
    )
    with pytest.raises(EditError, match="nothing to decorate"):
        apply(text, [edit.replace(body(text)[0], "f = None")])


def test_insertions_take_the_indentation_of_their_place() -> None:
    text = "class A:\n\tdef f(self):\n\t\t# note\n\t\treturn 1\n"
    statement = body(text)[0].body[0].body[0]  # type: ignore[attr-defined]
    assert apply(text, [edit.insert_before(statement, "if a:\n    b()\nc()")]) == (
        "class A:\n\tdef f(self):\n\t\tif a:\n\t\t\tb()\n\t\tc()\n\t\t# note\n\t\treturn 1\n"
    )


def test_insert_after_a_compound_statement_comes_after_its_body() -> None:
    text = "for x in y:\n    f(x)\n    # end\n\nz = 1"
    assert apply(text, [edit.insert_after(body(text)[0], "model.train()")]) == (
        "for x in y:\n    f(x)\n    # end\nmodel.train()\n\nz = 1"
    )


def test_insert_after_the_last_line_without_newline() -> None:
    assert apply("a = 1", [edit.insert_after(body("a = 1")[0], "b = 2")]) == "a = 1\nb = 2"


def test_insertions_into_a_line_of_several_statements() -> None:
    text = "a = 1; b = 2  # c\n"
    assert apply(text, [edit.insert_before(body(text)[1], "m()")]) == "a = 1\nm()\nb = 2  # c\n"
    assert apply(text, [edit.insert_after(body(text)[0], "m()")]) == "a = 1\nm()\nb = 2  # c\n"
    assert apply(text, [edit.replace(body(text)[0], "a = 3")]) == "a = 3; b = 2  # c\n"
    assert apply(text, [edit.remove(body(text)[1])]) == "a = 1  # c\n"


def test_insertion_into_a_one_line_suite_makes_a_block() -> None:
    text = "if x: return_(y)\n"
    inner = body(text)[0].body[0]  # type: ignore[attr-defined]
    assert apply(text, [edit.insert_before(inner, "m()")]) == "if x:\n    m()\n    return_(y)\n"
    assert apply(text, [edit.remove(inner)]) == "if x: pass\n"
    assert apply(text, [edit.replace(inner, "z = 1")]) == "if x: z = 1\n"


def test_remove_leaves_comments_above_and_fills_an_empty_body() -> None:
    text = "def f():\n    # why\n    g()\n\n\nx = 1\n"
    assert apply(text, [edit.remove(body(text)[0].body[0])]) == (  # type: ignore[attr-defined]
        "def f():\n    pass\n    # why\n\n\nx = 1\n"
    )
    text = "a()\n# about b\nb()\nc()\n"
    assert apply(text, [edit.remove(body(text)[1])]) == "a()\n# about b\nc()\n"


def test_insertions_beside_a_replaced_statement_and_in_order() -> None:
    text = "a()\n"
    statement = body(text)[0]
    edits = [
        edit.insert_before(statement, "x()"),
        edit.replace(statement, "b()"),
        edit.insert_before(statement, "y()"),
        edit.insert_after(statement, "z()"),
    ]
    assert apply(text, edits) == "x()\ny()\nb()\nz()\n"


def test_inserted_definition_is_set_off_by_blank_lines() -> None:
    text = "def f():\n    pass\n\n\nx = 1\n"
    assert apply(text, [edit.insert_after(body(text)[0], "def g():\n    pass")]) == (
        "def f():\n    pass\n\n\ndef g():\n    pass\n\n\nx = 1\n"
    )


@pytest.mark.parametrize(
    ("before", "module", "name", "after"),
    [
        ("", "torch", "", "import torch"),
        ("x = 1\n", "torch", "", "import torch\n\nx = 1\n"),
        ('"""Doc."""\nx = 1\n', "torch", "", '"""Doc."""\n\nimport torch\n\nx = 1\n'),
        ('"""Doc."""\n\nx = 1\n', "torch", "", '"""Doc."""\n\nimport torch\n\nx = 1\n'),
        (
            "from __future__ import annotations\n\nx = 1\n",
            "torch",
            "",
            "from __future__ import annotations\nimport torch\n\nx = 1\n",
        ),
        (
            "#!/usr/bin/env python\nimport os\nx = 1\n",
            "math",
            "",
            "#!/usr/bin/env python\nimport os\nimport math\n\nx = 1\n",
        ),
        ("import torch\nx = 1\n", "math", "", "import math\nimport torch\nx = 1\n"),
        ("import torch\nimport zlib2\n", "torch", "nn", "import torch\nfrom torch import nn\nimport zlib2\n"),
        ("import torch.nn as nn\n", "torch", "nn", "import torch.nn as nn\n"),
        ("from torch import nn\n", "torch", "nn", "from torch import nn\n"),
        ("from torch import nn\n", "torch.nn as nn", "", "from torch import nn\n"),
        ("import torch.nn\n", "torch", "", "import torch.nn\n"),
        ("import torch\n", "torch.nn", "", "import torch\nimport torch.nn\n"),
        ("import torch as th\n", "torch", "", "import torch as th\nimport torch\n"),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None\n", "torch", "", None),
        (
            "import torch.nn as nn\n",
            "torch.nn",
            "functional",
            "import torch.nn as nn\nfrom torch.nn import functional\n",
        ),
    ],
)
def test_add_import(before: str, module: str, name: str, after: str | None) -> None:
    once = apply(before, [edit.add_import(module, name)])
    assert once == (before if after is None else after)
    assert apply(once, [edit.add_import(module, name)]) == once


def test_type_checking_imports_do_not_count() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert "\nimport torch\n" in apply(text, [edit.add_import("torch")])


def test_an_import_never_takes_a_name_that_means_something_else() -> None:
    with pytest.raises(EditError, match=r"`nn` already means flax\.linen"):
        apply("from flax import linen as nn\n", [edit.add_import("torch", "nn")])
    with pytest.raises(EditError, match="`F` already means something else"):
        apply("F = 96485\n", [edit.add_import("torch.nn.functional as F")])


def test_nested_and_contradicting_edits_are_refused() -> None:
    text = "y = f(g(a=1), b=2)\n"
    outer, inner = calls(text)
    for edits in (
        [edit.replace(outer, "h()"), edit.set_argument(inner, "k", "1")],
        [edit.remove(body(text)[0]), edit.replace(inner, "1")],
        [edit.set_argument(outer, "b", "3"), edit.replace(outer.keywords[0].value, "4")],
    ):
        with pytest.raises(EditError, match="lies inside"):
            apply(text, edits)
    for edits in (
        [edit.replace(outer, "h()"), edit.replace(outer, "k()")],
        [edit.set_argument(inner, "a", "3"), edit.remove_argument(inner, "a")],
        [edit.replace(outer, "h()"), edit.set_argument(outer, "b", "3")],
    ):
        with pytest.raises(EditError, match="contradict"):
            apply(text, edits)


def test_nested_calls_can_both_get_arguments_and_duplicates_collapse() -> None:
    text = "y = f(g(a=1), b=2)\n"
    outer, inner = calls(text)
    edits = [edit.set_argument(outer, "t", "0"), edit.set_argument(inner, "t", "0"), edit.set_argument(inner, "t", "0")]
    assert apply(text, edits) == "y = f(g(a=1, t=0), b=2, t=0)\n"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit("replace", (1, 1), (1, 2), "x")], "nothing to work on at 1:2"),
        ([Edit("remove", (9, 0), (9, 3))], "no line 9"),
        ([Edit("replace", (1, 0), (1, 3), "return return")], "does not parse"),
        ([Edit("set_argument", (1, 0), (1, 3), "1", "a")], "nothing to work on"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edits: Sequence[Edit], message: str) -> None:
    with pytest.raises(EditError, match=message):
        apply("abc\n", edits)


def test_a_file_that_does_not_parse_is_refused() -> None:
    with pytest.raises(EditError, match="the file does not parse"):
        apply("def (:\n", [edit.add_import("torch")])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_newlines_bom_and_tabs_are_kept(newline: str, bom: str) -> None:
    lines = ["# héllo", "if x:", "\ty = 'é'; z = drop(y)", '\tt = """a', "b" + '"""', ""]
    text = newline.join(lines)
    statement = body(text)[0].body[2]  # type: ignore[attr-defined]
    edits = [
        edit.set_argument(calls(text)[0], "p", "0"),
        edit.insert_after(statement, "for a in b:\n    c()"),
        edit.add_import("torch"),
    ]
    lines[2] = "\ty = 'é'; z = drop(y, p=0)"
    lines[5:] = ["\tfor a in b:", "\t\tc()", ""]
    assert apply(bom + text, edits) == bom + newline.join(["# héllo", "import torch", "", *lines[1:]])


def real_files() -> list[Path]:
    folder = Path(ast.__file__).parent
    torch_layers = sorted(folder.glob("site-packages/torch/nn/modules/*.py"))
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("json/*.py")), *torch_layers]
    small = [path for path in files if path.stat().st_size < 25_000]
    return random.Random(0).sample(small, 25)


@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
def test_edits_that_change_nothing_change_nothing_in_real_files(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        text = stream.read()
    tree = ast.parse(text)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.MatchValue)
        for inner in ast.walk(node)
    }
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in hidden]
    assert apply(text, [edit.replace(node, node.id) for node in names]) == text


@pytest.mark.parametrize("path", real_files()[:8], ids=lambda path: path.name)
def test_lines_that_no_edit_touches_are_kept_in_real_files(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as stream:
        text = stream.read()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    edits = [edit.insert_before(function.body[-1], "marker = 1") for function in functions]
    result = apply(text, edits)
    kept = [line for line in result.split("\n") if line.strip() != "marker = 1"]
    one_line = sum(function.body[-1].lineno == function.lineno for function in functions)
    if not one_line:
        assert kept == text.split("\n")


SOURCE = textwrap.dedent(
    '''
    """Doc."""
    import torch

    class Net(torch.nn.Module):
        def forward(self, x, *, p=0.5):
            # ünïcode
            y = drop(x, p); z = drop(
                y,  # first
                p=p,
            )
            if x: return y
            return {"a": [z, *y], "b": lambda q: q ** -p}
    '''
).lstrip()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_set_of_edits_gives_a_file_that_parses_or_an_error(data: st.DataObject) -> None:
    tree = ast.parse(SOURCE)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)]
    edits = []
    for node in data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4)):
        if isinstance(node, ast.stmt):
            act = data.draw(st.sampled_from([edit.insert_before, edit.insert_after, edit.replace, edit.remove]))
            edits.append(edit.remove(node) if act is edit.remove else act(node, "new(1)"))  # type: ignore[operator,call-arg]
        elif isinstance(node, ast.Call):
            edits.append(edit.set_argument(node, data.draw(st.sampled_from(["p", "training"])), "a or b"))
        else:
            edits.append(edit.replace(node, data.draw(st.sampled_from(["a", "a or b", "f(a)", "a, b"]))))
    try:
        result = apply(SOURCE, edits)
    except EditError:
        return
    ast.parse(result)
    assert "ünïcode" in result or any(e.op in ("remove", "replace") for e in edits)
    assert applied(SOURCE, text_edits(SOURCE, result)) == result


def applied(text: str, changes: Sequence[dict]) -> str:
    """Carries text edits out as an editor would."""
    starts = [0]
    for line in text.replace("\r\n", "\0\n").split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    text = text.replace("\r\n", "\0\n")
    for change in reversed(changes):
        first, last = (starts[change[k]["row"] - 1] + change[k]["column"] - 1 for k in ("location", "end_location"))
        text = text[:first] + change["content"].replace("\r\n", "\0\n") + text[last:]
    return text.replace("\0\n", "\r\n")


LINES = st.lists(st.sampled_from(["a", "b\u2028", "", "é c", "\x0cd"]), max_size=6)


@given(LINES, LINES, st.booleans(), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=200, deadline=None)
def test_text_edits_lead_to_the_new_text(old: list[str], new: list[str], ended: bool, newline: str) -> None:
    end = newline if ended else ""
    before, after = newline.join(old) + end, newline.join(new) + end
    assert applied(before, text_edits(before, after)) == after


def test_text_edits_are_minimal() -> None:
    assert text_edits("a = f(x)\nb\n", "a = f(x, p)\nb\n") == [
        {"content": ", p", "location": {"row": 1, "column": 8}, "end_location": {"row": 1, "column": 8}}
    ]
    assert text_edits("a\n", "a\n") == []
    assert text_edits("a", "a\nb") == [
        {"content": "\nb", "location": {"row": 1, "column": 2}, "end_location": {"row": 1, "column": 2}}
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f()\n", 'f("cuda")\n'),
        ("f(a, b=2)\n", 'f("cuda", first=a, b=2)\n'),
        ("f(\n    a,  # why\n)\n", 'f(\n    "cuda",\n    first=a,  # why\n)\n'),
    ],
)
def test_first_argument_and_names(before: str, after: str) -> None:
    call = calls(before)[0]
    edits = [edit.name_argument(call, 0, "first")] if call.args else []
    assert apply(before, [*edits, edit.prepend_argument(call, '"cuda"')]) == after


@pytest.mark.parametrize("text", ["f(*a)\n", "f(a=1)\n", "f()\n"])
def test_no_positional_argument_to_name(text: str) -> None:
    call = calls(text)[0]
    with pytest.raises(EditError, match="nothing by position"):
        apply(text, [edit.name_argument(call, 0, "first")])
