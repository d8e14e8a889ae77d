"""Audits a zoo of models that others wrote, and says how much was captured, what it cost and what was found.

    python benchmarks/zoo.py                              # everything that is installed; goes on where it stopped
    python benchmarks/zoo.py --only timm --limit 20       # a part
    python benchmarks/zoo.py --peers 4                    # every 4th model: also torch.fx.symbolic_trace, torch.export
    python benchmarks/zoo.py --mutate                     # seeded mistakes on a sample, and which of them were found
    python benchmarks/zoo.py --report                     # the figures of what has been run so far

Install what you want to have in it (transformers timm vit-pytorch x-transformers diffusers monai torch_geometric …, see
`zoo_models.py`; torchvision is not needed). Weights are random; inputs are inferred with no help. Each model is run in
a child process with a time and a memory limit; each gives one line of JSON in the results file. The models are taken
for correct: an error or a warning on one of them is a false alarm unless somebody reads it and finds it true.

Costs are ratios of processor time within one run, to one training step (forward and backward) on the probe's batch (32
samples, 8 of large ones); memory is the peak above what the built model held before, relative to the step's.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TIMEOUT = 600.0
MEMORY = 6.0
PEER_SECONDS = 60
RESTART = 40  # models after which the child is replaced, so that none pays for what many left behind
SEED = 0


# In the child ---------------------------------------------------------------------------------------------------------


def measure(payload: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """Build, feed, audit and time one model; the result says how far it came."""
    import torch

    from benchmarks import zoo_models

    torch.set_num_threads(1)
    found: dict[str, Any] = {"built": False}
    try:
        start = time.process_time()
        model = zoo_models.build(payload["source"], payload["name"])
        found |= {"built": True, "build_s": time.process_time() - start, "class": type(model).__name__}
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    except Exception as error:  # whatever a constructor raises
        return found | {"reason": f"{type(error).__name__}: {error}"[:300]}
    return found | _audited(model, payload["peers"])


def _audited(model: Any, peers: bool) -> dict[str, Any]:
    from auditor.dynamic.capture import capture
    from auditor.dynamic.inputs import InputError
    from auditor.dynamic.inputs.infer import from_hooks, infer
    from auditor.dynamic.probe_batch import fresh_batch
    from auditor.dynamic.service import run_checks
    from auditor.settings import Settings
    from auditor.static.check import chosen_rules

    found: dict[str, Any] = {}
    rules = [rule.loaded() for rule in chosen_rules(Settings())]  # imports are on neither side
    start = time.process_time()
    try:
        inputs = from_hooks(model, None, SEED) or infer(model, seed=SEED)
        found |= {"fed": True, "input": inputs.description, "input_from": inputs.source}
    except (InputError, ValueError) as error:
        return {"fed": False, "reason": str(error)[:300], "infer_s": time.process_time() - start}
    found["infer_s"] = time.process_time() - start
    gc.collect()
    with _peak_memory() as memory:
        start = time.process_time()
        captured = capture(model, inputs, seed=SEED)
        findings, problems = run_checks(captured, rules, "")
        found["audit_s"] = time.process_time() - start
    found["audit_mb"] = memory()
    found["rungs"] = {mode: [rung.name, rung.reason] for mode, rung in captured.rungs.items()}
    found["opaque"] = sorted({part for rung in captured.rungs.values() for part in rung.opaque})
    nodes = captured.nodes("eval") or captured.nodes("train")
    found["nodes"] = len(nodes)
    found["with_line"] = sum(bool(node.node.meta.get("line", ("", 0))[1]) for node in nodes)
    found["with_module"] = sum(bool(node.module) for node in nodes)
    found["probe"] = captured.probe.reason
    found["problems"] = [problem.message for problem in problems]
    found["findings"] = [
        {
            "code": finding.code,
            "severity": str(finding.severity),
            "message": finding.message,
            "where": f"{finding.location.path}:{finding.location.row}",
            "layers": list(finding.modules[:3]),
        }
        for finding in findings
    ]
    batch = fresh_batch(captured, SEED)
    args, kwargs = (batch.args, batch.kwargs) if batch is not None else (inputs.args, inputs.kwargs)
    found |= _one_step(model, args, kwargs)
    if peers:
        found["peers"] = _peers(model, inputs)
    return found


def _one_step(model: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Processor seconds (the better of two) and peak memory of a forward and a backward."""
    import torch

    from auditor.dynamic.record import cloned, tensors_in
    from auditor.dynamic.state import preserved

    try:
        with preserved(model):
            model.train()
            times = []
            for _ in range(2):
                gc.collect()
                with _peak_memory() as memory:
                    start = time.process_time()
                    given, named = cloned((args, kwargs))
                    outputs = model(*given, **named)
                    terms = [t.float().sum() for t in tensors_in(outputs) if t.requires_grad and not t.is_complex()]
                    if not terms:
                        return {}
                    torch.stack(terms).sum().backward()
                    times.append(time.process_time() - start)
                    del outputs, terms
                model.zero_grad(set_to_none=True)
        return {"step_s": min(times), "step_mb": memory()}
    except Exception as error:  # whatever user code raises
        return {"step_reason": f"{type(error).__name__}: {error}"[:200]}


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """Peak resident memory inside, in MB above that at the start; Linux."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    peak = 0.0

    def read() -> float:
        return peak

    yield read
    peak = (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1))


def _peers(model: Any, inputs: Any) -> dict[str, Any]:
    """Whether symbolic tracing and export work on the model in eval mode, at what cost."""
    import torch

    from auditor.dynamic.record import cloned
    from auditor.dynamic.state import preserved

    args, kwargs = cloned((inputs.args, inputs.kwargs))
    ways = {
        "symbolic_trace": lambda: torch.fx.symbolic_trace(model),
        "export": lambda: torch.export.export(model, args, kwargs, strict=False),
    }
    found = {}
    for name, way in ways.items():
        with preserved(model):
            model.eval()
            start = time.process_time()
            try:
                with torch.no_grad(), _limited(PEER_SECONDS):
                    way()
                reason = ""
            except Exception as error:  # whatever tracers and user code raise
                reason = f"{type(error).__name__}: {error}"[:200] or "failed"
            found[name] = {"reason": reason, "seconds": time.process_time() - start}
    return found


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*event: Any) -> None:
        raise TimeoutError(f"{seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutate(payload: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """The codes of errors and warnings that a model has after each seeded mistake."""
    import torch

    from auditor.dynamic.capture import capture
    from auditor.dynamic.inputs.infer import from_hooks, infer
    from auditor.dynamic.service import run_checks
    from auditor.settings import Settings
    from auditor.static.check import chosen_rules
    from benchmarks import zoo_models
    from benchmarks.zoo_mutations import MUTATIONS

    torch.set_num_threads(1)
    rules = chosen_rules(Settings(select=("INI", "WGT")))
    found: dict[str, Any] = {}
    inputs = None
    for name, mutation in MUTATIONS.items():
        torch.manual_seed(SEED)
        try:
            model = zoo_models.build(payload["source"], payload["name"])
            inputs = inputs or from_hooks(model, None, SEED) or infer(model, seed=SEED)
            mutation(model)
            findings, problems = run_checks(capture(model, inputs, seed=SEED), rules, "")
        except Exception as error:  # whatever user code raises
            return {"reason": f"{type(error).__name__}: {error}"[:300]}
        serious = sorted({(f.code, str(f.severity)) for f in findings if str(f.severity) != "info"})
        found[name] = {"codes": serious, "problems": [problem.message for problem in problems]}
    return {"mutations": found}


def names(payload: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
    """The models of one source."""
    from benchmarks import zoo_models

    return {"names": zoo_models.names(payload["source"])}


# In the parent --------------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """Run what the results file does not have yet."""
    from auditor.dynamic.worker import Worker, WorkerError
    from benchmarks.zoo_models import SOURCES

    done = {(line["source"], line["name"]) for line in _lines(arguments.results)}
    operations = {name: f"benchmarks.zoo:{name}" for name in ("names", "measure", "mutate")}
    operation = "mutate" if arguments.mutate else "measure"
    with Worker(timeout=TIMEOUT, memory=MEMORY, operations=operations) as worker:
        for source in SOURCES:
            if arguments.only and source not in arguments.only:
                continue
            listed = worker.request("names", source=source)["names"]
            worker.close()
            wanted = listed[:: max(1, len(listed) // arguments.limit)][: arguments.limit] if arguments.limit else listed
            for number, name in enumerate(wanted):
                if (source, name) in done:
                    continue
                if number % RESTART == RESTART - 1:
                    worker.close()
                peers = bool(arguments.peers) and number % arguments.peers == 0
                start = time.monotonic()
                try:
                    line = worker.request(operation, source=source, name=name, peers=peers)
                except WorkerError as error:
                    line = {"built": None, "stopped": error.kind, "reason": str(error)[:300]}
                line |= {"source": source, "name": name, "wall_s": round(time.monotonic() - start, 2)}
                with arguments.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{source} {name}: {_short(line)}", flush=True)
            worker.close()


def _short(line: Mapping[str, Any]) -> str:
    if "mutations" in line:
        return f"{sum(bool(seen['codes']) for seen in line['mutations'].values())} of {len(line['mutations'])} seen"
    if "rungs" not in line:
        return str(line.get("reason", ""))[:150]
    codes = Counter(finding["code"] for finding in line["findings"] if finding["severity"] != "info")
    steps = line["audit_s"] / line["step_s"] if line.get("step_s") else float("nan")
    return f"{'/'.join(rung for rung, _ in line['rungs'].values())} {steps:.1f} steps {dict(codes) or ''}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Report ---------------------------------------------------------------------------------------------------------------


def report(path: Path) -> None:
    """Print the figures of a results file."""
    lines = _lines(path)
    built = [line for line in lines if line.get("built")]
    stopped = [line for line in lines if line.get("stopped")]
    fed = [line for line in built if line.get("fed")]
    ran = [line for line in fed if any(rung != "none" for rung, _ in line["rungs"].values())]
    recorded = [line for line in ran if all(rung == "record" for rung, _ in line["rungs"].values())]
    print(f"models listed {len(lines)}, built {len(built)}, stopped at a limit {len(stopped)}")
    print(f"inputs inferred with no help: {_share(len(fed), len(built))} of the built")
    print(f"of those that run ({len(ran)}):")
    rungs = Counter(rung for line in ran for rung, _ in line["rungs"].values())
    print(f"  recorded in both modes: {_share(len(recorded), len(ran))}; runs by rung {dict(rungs)}")
    nodes = sum(line["nodes"] for line in ran)
    print(f"  nodes with a source line: {_share(sum(line['with_line'] for line in ran), nodes)}")
    print(f"  nodes with a module path: {_share(sum(line['with_module'] for line in ran), nodes)}")
    unprobed = sum(bool(line["probe"]) for line in ran)
    print(f"  with opaque parts: {sum(bool(line['opaque']) for line in ran)}; not probed: {unprobed}")
    timed = [line for line in ran if line.get("step_s")]
    print(f"  audit, in training steps: {_spread([line['audit_s'] / line['step_s'] for line in timed])}")
    for shortest, longest in ((0.0, 0.02), (0.02, 0.1), (0.1, math.inf)):
        costs = [line["audit_s"] / line["step_s"] for line in timed if shortest <= line["step_s"] < longest]
        print(f"    of the {len(costs)} with steps of {shortest} s to {longest} s: {_spread(costs)}")
    print(f"  inference of inputs, in steps: {_spread([line['infer_s'] / line['step_s'] for line in timed])}")
    large = [line for line in timed if line["step_mb"] >= 20]
    print(f"  peak memory, in steps (of {len(large)} of 20 MB or more): {_spread([_memory(line) for line in large])}")
    _peer_report(ran)
    for severity in ("error", "warning"):
        hit = [line for line in ran if any(f["severity"] == severity for f in line["findings"])]
        print(f"models with an {severity}: {_share(len(hit), len(ran))}")
    counts = Counter((f["code"], f["severity"]) for line in ran for f in _once(line["findings"]))
    print(
        "findings, by models:", ", ".join(f"{code} {level} {count}" for (code, level), count in sorted(counts.items()))
    )
    for line in ran:
        for finding in line["findings"]:
            if finding["severity"] != "info":
                print(f"  {line['source']} {line['name']}: {finding['code']} {finding['severity']} "
                      f"{finding['message']} {finding['layers']} {finding['where']}")  # fmt: skip
    for kind, chosen in (("not fed", [b for b in built if not b.get("fed")]), ("stopped", stopped),
                         ("problem", [line for line in ran if line["problems"]])):  # fmt: skip
        for line in chosen:
            print(f"  {kind}: {line['source']} {line['name']}: {line.get('reason') or line['problems'][0]}")


def mutation_report(path: Path) -> None:
    """Print, for each seeded mistake, on how many models it was an error, a warning at most, or not seen."""
    lines = [line["mutations"] for line in _lines(path) if "mutations" in line]
    print(f"{len(lines)} models")
    for name in lines[0] if lines else ():
        levels = [{level for _, level in line[name]["codes"]} for line in lines]
        errors, warnings = sum("error" in level for level in levels), sum(level == {"warning"} for level in levels)
        codes = Counter(code for line in lines for code, _ in line[name]["codes"])
        shown = ", ".join(f"{code} {count}" for code, count in codes.most_common(4))
        print(f"{name:<22} error {errors:3}  warning only {warnings:3}  silent {levels.count(set()):3}  {shown}")


def _peer_report(ran: list[dict[str, Any]]) -> None:
    compared = [line for line in ran if line.get("peers")]
    for peer in ("symbolic_trace", "export"):
        works = [line for line in compared if not line["peers"][peer]["reason"]]
        if compared:
            print(f"  torch {peer} on the same models: {_share(len(works), len(compared))}")
    both = [line for line in compared if all(rung == "record" for rung, _ in line["rungs"].values())]
    if compared:
        print(f"  recorded, of the same models: {_share(len(both), len(compared))}")


def _once(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(finding["code"], finding["severity"]): finding for finding in findings}.values())


def _memory(line: Mapping[str, Any]) -> float:
    return line["audit_mb"] / max(line["step_mb"], 1.0)


def _share(part: int, whole: int) -> str:
    return f"{part}/{whole} ({100 * part / whole:.1f} %)" if whole else "0/0"


def _spread(values: list[float]) -> str:
    if not values:
        return "not measured"
    ordered = sorted(values)
    high = ordered[int(0.9 * (len(ordered) - 1))]
    return f"median {statistics.median(ordered):.1f}, 90 % {high:.1f}, most {ordered[-1]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="file of results (zoo.jsonl, or mutations.jsonl with --mutate)")
    parser.add_argument("--only", action="append", help="a source (repeat for several)")
    parser.add_argument("--limit", type=int, help="at most so many models of each source, spread over it")
    parser.add_argument("--peers", type=int, metavar="N", help="also run other tracers, on every Nth model")
    parser.add_argument("--mutate", action="store_true", help="seed mistakes, and report which were found")
    parser.add_argument("--report", action="store_true", help="only print the figures")
    arguments = parser.parse_args()
    arguments.results = arguments.results or Path("mutations.jsonl" if arguments.mutate else "zoo.jsonl")
    if not arguments.report:
        run(arguments)
    (mutation_report if arguments.mutate else report)(arguments.results)


if __name__ == "__main__":
    main()
