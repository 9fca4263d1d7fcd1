"""Code in fresh processes that have PyTorch and nothing of ours: one is started, which imports it, and forks for each code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SERVER = """if True:
    import json, os, sys, traceback
    given = json.load(sys.stdin)
    exec(given["first"])
    ended = []
    for code in given["codes"]:
        read, write = os.pipe()
        if not (child := os.fork()):
            os.dup2(write, 1), os.dup2(write, 2)
            failed = 0
            try:
                exec(code, {"__name__": "__main__"})
            except BaseException:
                failed = 1
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(failed)
        os.close(write)
        with open(read, errors="replace") as said:
            ended.append([said.read(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])])
    print(json.dumps(ended))
"""


class Ended(NamedTuple):
    output: str
    returncode: int


def run_each(codes: list[str], first: str, folder: Path) -> list[Ended]:
    """What each of them said, and how it ended; `first` is run once, before."""
    given = json.dumps({"first": first, "codes": codes})
    command = [sys.executable, "-P", "-c", SERVER]
    server = subprocess.run(command, input=given, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return [Ended(*one) for one in json.loads(server.stdout)]
