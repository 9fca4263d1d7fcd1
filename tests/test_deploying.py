"""docs/deploying.md: what it saves and loads, in fresh processes, and what they say where fastlstm was not imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import Ended, run_each

PAGE = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text()
BLOCKS = {
    title: dict(re.findall(r"```python (save|load)\n(.*?)```", section, re.S))
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}
SAYS = dict(re.findall(r"^\| an? (exported program|compiled program|traced module) \| `(.+?)` \|$", PAGE, re.M))
NEEDS_US = {"Exported": "exported program", "Compiled ahead of time": "compiled program", "Traced": "traced module"}


def test_the_page_is_read():
    titles = [title for title, blocks in BLOCKS.items() if blocks]
    assert titles == ["Exported", "Compiled ahead of time", "Traced", "ONNX", "Quantized"]
    assert all(blocks.keys() == {"save", "load"} for blocks in BLOCKS.values() if blocks)
    assert SAYS.keys() == set(NEEDS_US.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page saves, by one process."""
    folder = tmp_path_factory.mktemp("saved")
    # one program is compiled, and run once: headers that are compiled before it, and -O1, take longer than they save
    settings = "from torch._inductor.config import aot_inductor as of\n"
    settings += "of.precompile_headers, of.compile_wrapper_opt_level = False, 'O0'"
    code = "\n".join([settings, *(blocks["save"] for blocks in BLOCKS.values() if blocks)])
    saved = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert saved.returncode == 0, saved.stderr
    return folder


@pytest.fixture(scope="module")
def loaded(folder) -> dict[tuple[str, bool], Ended]:
    """How each block that loads ends: as it stands, and where our import was forgotten."""
    codes = {(title, False): blocks["load"] for title, blocks in BLOCKS.items() if blocks}
    codes |= {(title, True): codes[title, False].replace("import fastlstm\n", "") for title in NEEDS_US}
    first = "import torch, torch._dynamo, torch.export, torch._inductor.package, numba"
    return dict(zip(codes, run_each(list(codes.values()), first, folder), strict=True))


@pytest.mark.parametrize("title", [title for title, blocks in BLOCKS.items() if blocks])
def test_loaded(title, loaded):
    assert ("import fastlstm\n" in BLOCKS[title]["load"]) == (title in NEEDS_US)
    assert loaded[title, False].returncode == 0, loaded[title, False].output
    if title in NEEDS_US:
        forgotten = loaded[title, True]
        assert forgotten.returncode == 1
        assert SAYS[NEEDS_US[title]] in forgotten.output
