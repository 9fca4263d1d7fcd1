"""Code in fresh processes: one is started, which imports what takes long, and forks for each code.

What is forked runs its code as the main program, and ends as an interpreter does.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SERVER = """if True:
    import atexit, gc, json, os, signal, sys
    exec(sys.argv[1])
    gc.freeze()  # forks look for garbage among what is their own, and among all at their ends
    atexit.register(gc.unfreeze)
    living = set()
    for line in sys.stdin:
        given = json.loads(line)
        if given["pid"]:
            pid, status = os.waitpid(given["pid"], os.WNOHANG)
            living.discard(pid)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            living.add(pid)
            print(pid, flush=True)
        else:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(given["said"], os.O_WRONLY), 1), os.dup2(1, 2)
            os.chdir(given["folder"])
            os.environ |= given["environment"]
            sys.argv[1:] = given["arguments"]
            break
    else:
        for pid in living:  # of a test that failed before it ended them
            os.kill(pid, signal.SIGKILL)
        sys.exit()
    exec(given["code"], {"__name__": "__main__"})
"""


class Ended(NamedTuple):
    output: str
    returncode: int


class Process:
    """One that was forked; `pid` is its own."""

    def __init__(self, server: "Server", pid: int, said: Path) -> None:
        self.server, self.pid, self.said = server, pid, said
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask(pid=self.pid)
        return self.returncode

    def end(self, seconds: float = 120) -> Ended:
        """What it said, and how it ended."""
        last = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < last, f"after {seconds} s it still runs, and says: {self.said.read_text()}"
            time.sleep(0.005)
        return Ended(self.said.read_text(errors="replace"), self.returncode)


class Server:
    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.folder, self.started = process, folder, 0

    def ask(self, **given: Any) -> Any:
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, code: str, *arguments: str, folder: Path | None = None, **environment: str) -> Process:
        self.started += 1
        said = self.folder / f"{self.started}.txt"
        said.touch()
        given = {"said": str(said), "folder": str(folder or self.folder), "environment": environment}
        return Process(self, self.ask(pid=0, code=code, arguments=arguments, **given), said)


@contextmanager
def server(first: str, folder: Path, **environment: str) -> Iterator[Server]:
    """Whose processes have run `first`, which is run once; `folder` keeps what they say, and is theirs."""
    command, pipe = [sys.executable, "-P", "-c", SERVER, first], subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield Server(process, folder)


def run_each(codes: list[str], first: str, folder: Path) -> list[Ended]:
    """What each of them said, and how it ended; `first` is run once, before."""
    with server(first, folder) as started:
        return [started.start(code).end() for code in codes]
