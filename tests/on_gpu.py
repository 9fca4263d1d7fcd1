"""Checks that need a GPU, without pytest: each prints a line, and a failure does not end the others.

They run in a process of their own. One that hangs, or leaves a GPU that refuses to go on, costs that process, and the others
get another one.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch
from gpu_checks import CHECKS, LIMIT_S, Skip


def run_one(name: str) -> dict[str, str | float]:
    """Run a check and print its line."""
    start, reason = time.perf_counter(), ""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    try:
        reason = CHECKS[name]() or ""
        torch.cuda.synchronize()
        status = "ok"
    except Skip as skip:
        status, reason = "skipped", str(skip)
    except Exception as error:
        traceback.print_exc()
        status, reason = "FAIL", f"{type(error).__name__}: {error}"
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    print(f"{name:26} {status:7} {seconds:6.1f} s  {reason.partition(chr(10))[0][:300]}", flush=True)
    return result(name, status, reason, seconds)


def result(name: str, status: str, reason: str, seconds: float) -> dict[str, str | float]:
    return {"name": name, "status": status, "reason": reason, "seconds": round(seconds, 2)}


def run_until_broken(names: list[str], file: Path) -> None:
    """Run checks and write a line of JSON for each; ends early where the GPU refuses to go on."""
    for name in names:
        with file.open("a") as out:
            # what holds if the process doesn't come to the line after it
            print(json.dumps(result(name, "FAIL", "the process hung or died", 0.0)), file=out, flush=True)
            print(json.dumps(run_one(name)), file=out)
        torch.cuda.synchronize()


def run_all(names: list[str]) -> list[dict]:
    """Run checks in another process, and those that are left in yet another, where it did not come to its end."""
    found: dict[str, dict] = {}
    while left := [name for name in names if name not in found]:
        with tempfile.NamedTemporaryFile() as file:
            command = [sys.executable, __file__, "--until-broken", file.name]
            subprocess.run([*command, *(word for name in left for word in ("--only", name))])
            lines = Path(file.name).read_text().splitlines()
        if not lines:
            sys.exit("the process of the checks did not start")
        found |= {one["name"]: one for one in map(json.loads, lines)}
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("--only", action="append", choices=CHECKS, help="run this check; may be given several times")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--until-broken", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        return print(*CHECKS, sep="\n")
    if not torch.cuda.is_available():
        sys.exit("no GPU here: torch.cuda.is_available() is False")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS promises the same bits with it only
    names = options.only or list(CHECKS)
    if options.until_broken:
        return run_until_broken(names, options.until_broken)
    results = run_all(names) if len(names) > 1 else [run_one(name) for name in names]
    if options.json:
        from fastlstm.benchmarks.machine import machine

        facts = {"machine": machine("cuda"), "checks": results}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    failed = [one["name"] for one in results if one["status"] == "FAIL"]
    print(f"{len(results)} checks, {len(failed)} failed", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
