"""Checks that need a GPU, without pytest: each prints a line, and a failure does not end the others.

They run in processes of their own. One that hangs, or leaves a GPU that refuses to go on, costs that process, and the others
get another one. What is known is written after each.
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
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_checks import CHECKS, LIMIT_S, Skip

PROCESSES = 4


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
    # in one piece, also where Python buffers nothing: other processes print theirs meanwhile
    sys.stdout.write(f"{name:26} {status:7} {seconds:6.1f} s  {reason.partition(chr(10))[0][:300]}\n")
    sys.stdout.flush()
    return result(name, status, reason, seconds)


def result(name: str, status: str, reason: str, seconds: float) -> dict[str, str | float]:
    return {"name": name, "status": status, "reason": reason, "seconds": round(seconds, 2)}


def run_until_broken(names: list[str], file: Path) -> None:
    """Run checks and write a line of JSON for each; ends early where the GPU refuses to go on."""
    for name in names:
        with file.open("a") as out:
            # what holds if the process doesn't come to the line after it
            print(json.dumps(result(name, "FAIL", "the process hung, died or was ended", 0.0)), file=out, flush=True)
            print(json.dumps(run_one(name)), file=out)
        torch.cuda.synchronize()


class Share:
    """Checks that run one after another in another process, and those that are left in yet another, where it did not come to
    its end."""

    def __init__(self, names: list[str], file: Path) -> None:
        self.names, self.file, self.left = names, file, 0
        self.process: subprocess.Popen | None = None
        file.touch()

    def found(self) -> dict[str, dict]:
        whole = self.file.read_text().rpartition("\n")[0]  # a line may be being written
        return {one["name"]: one for one in map(json.loads, whole.splitlines())}

    def goes_on(self) -> bool:
        if self.process is not None and self.process.poll() is None:
            return True
        left = [name for name in self.names if name not in self.found()]
        if self.process is not None and left and len(left) == self.left:
            sys.exit("a process of the checks did not start")
        self.left = len(left)
        if left:
            command = [sys.executable, __file__, "--until-broken", self.file]
            self.process = subprocess.Popen([*command, *(word for name in left for word in ("--only", name))])
        return bool(left)


def run_all(names: list[str], report: Callable[[list[dict]], None]) -> list[dict]:
    """Run checks in several processes: what takes the time is compiling. What is known is reported whenever there is more."""
    folder, known = tempfile.TemporaryDirectory(), None
    shares = [Share(names[k::PROCESSES], Path(folder.name, str(k))) for k in range(min(PROCESSES, len(names)))]
    try:
        while True:
            going = [share.goes_on() for share in shares]
            found = {name: one for share in shares for name, one in share.found().items()}
            results = [found.get(name, result(name, "not run", "", 0.0)) for name in names]
            if results != known:
                report(results)
            known = results
            if not any(going):
                return results
            time.sleep(0.2)
    finally:
        for share in shares:
            if share.process is not None:
                share.process.kill()
        folder.cleanup()


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
    facts = {}
    if options.json:
        from fastlstm.benchmarks.machine import machine

        facts["machine"] = machine("cuda")

    def report(results: list[dict]) -> None:
        if options.json:
            options.json.write_text(json.dumps(facts | {"checks": results}, indent=1) + "\n")

    if len(names) > 1:
        results = run_all(names, report)
    else:
        results = [run_one(name) for name in names]
        report(results)
    failed = [one["name"] for one in results if one["status"] == "FAIL"]
    print(f"{len(results)} checks, {len(failed)} failed", *failed)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
