"""One JSON object per line: findings as they are found in the `json` format, then problems."""

from __future__ import annotations

import json

from auditor.report import Report
from auditor.report.json import records


def render(report: Report) -> str:
    return "\n".join(json.dumps(item, sort_keys=True, ensure_ascii=False, default=str) for item in records(report))
