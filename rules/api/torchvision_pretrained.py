"""Pretrained models of torchvision asked for by a flag.

## What it finds
`pretrained=` and `pretrained_backbone=` in calls of the model functions of `torchvision.models`.

## Why it matters
The flags are deprecated since torchvision 0.13 (torch 1.12) and are to be removed. `True` means the oldest weights that
torchvision has for the model; `weights=` names them, so that a reader knows which ones, and can have better ones.

## Example
    import torchvision

    def backbone():
        return torchvision.models.resnet50(pretrained=True)

## Use instead
    import torchvision

    def backbone():
        return torchvision.models.resnet50(weights="IMAGENET1K_V1")

## When to ignore it
Code that must run with torchvision before 0.13.

## References
- https://pytorch.org/vision/stable/models.html#initializing-pre-trained-models
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from auditor.finding import Finding, Severity
from auditor.fix.claims import outputs, parameters
from auditor.fix.edit import Edit, remove_argument, set_argument
from auditor.rule import Category, Rule
from auditor.static.facts.api import guarded, text_of
from auditor.static.source import Source

rule = Rule(
    __name__,
    code="API012",
    category=Category.ROBUSTNESS,
    severity=Severity.WARNING,
    summary="pretrained models of torchvision asked for by a flag",
    triggers=("torchvision",),
    since="1.12",
)

MODELS = "torchvision.models."
FLAGS = {"pretrained": "weights", "pretrained_backbone": "weights_backbone"}
# The weights that `True` stands for, by kind of model; classifiers have IMAGENET1K_V1.
KINDS = {"detection": "COCO_V1", "segmentation": "COCO_WITH_VOC_LABELS_V1", "video": "KINETICS400_V1"}
ODD = {"raft_large": "C_T_SKHT_V2", "raft_small": "C_T_V2"}
WITHOUT = ("vit_h_14", "regnet_y_128gf")  # `True` never worked for these


@rule.static
def flags(source: Source) -> Iterator[Finding]:
    """Keyword flags of torchvision's own functions, whose names start with a small letter."""
    calls = source.calls_named(*_names(source))
    for call in calls:
        names = source.resolve(call.func)
        if not names or not all(name.startswith(MODELS) for name in names) or guarded(source, call):
            continue
        for keyword in call.keywords:
            if keyword.arg in FLAGS:
                message = f"`{keyword.arg}` is deprecated: `{FLAGS[keyword.arg]}` names the weights"
                yield rule.finding(call, message, flag=keyword.arg)


def _names(source: Source) -> list[str]:
    """The callees of calls that pass one of the flags."""
    found = []
    for call in source.tree.all(ast.Call):
        if any(keyword.arg in FLAGS for keyword in call.keywords):
            found += [name.rpartition(".")[2] for name in source.resolve(call.func)]
    return sorted(set(found))


@rule.fix("name the weights", keeps=[parameters(), outputs()])
def weights(source: Source, finding: Finding) -> list[Edit] | None:
    """A flag that is no literal becomes a conditional expression, unless its value would be computed twice."""
    call = source.node_at(finding.location, ast.Call)
    if not isinstance(call, ast.Call):
        return None
    flag = next((keyword for keyword in call.keywords if keyword.arg == finding.facts["flag"]), None)
    model = min(source.resolve(call.func)).removeprefix(MODELS)
    if flag is None or flag.arg is None or model.rpartition(".")[2] in WITHOUT:
        return None
    new, named = FLAGS[flag.arg], _weights(model, flag.arg)
    if any(keyword.arg in (new, None) for keyword in call.keywords):
        return None  # passed as well, or perhaps in `**`
    if isinstance(flag.value, ast.Constant):
        code = f'"{named}"' if flag.value.value else "None"
    else:
        code = f'"{named}" if {text_of(source, flag.value)} else None'
    return [remove_argument(call, flag.arg), set_argument(call, new, code)]


def _weights(model: str, flag: str) -> str:
    kind, _, name = model.rpartition(".")
    if flag == "pretrained_backbone":
        return "IMAGENET1K_FEATURES" if name == "ssd300_vgg16" else "IMAGENET1K_V1"
    return ODD.get(name) or KINDS.get(kind.partition(".")[0], "IMAGENET1K_V1")
