"""docs/deploying.md: what it saves and loads, in fresh processes, and what they say where fastlstm was not imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "deploying.md").read_text()
BLOCKS = {
    title: dict(re.findall(r"```python (save|load)\n(.*?)```", section, re.S))
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}
SAYS = dict(re.findall(r"^\| an? (exported program|compiled program|traced module) \| `(.+?)` \|$", PAGE, re.M))
NEEDS_US = {"Exported": "exported program", "Compiled ahead of time": "compiled program", "Traced": "traced module"}


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)


def test_the_page_is_read():
    titles = [title for title, blocks in BLOCKS.items() if blocks]
    assert titles == ["Exported", "Compiled ahead of time", "Traced", "ONNX", "Quantized"]
    assert all(blocks.keys() == {"save", "load"} for blocks in BLOCKS.values() if blocks)
    assert SAYS.keys() == set(NEEDS_US.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page saves, by one process."""
    folder = tmp_path_factory.mktemp("saved")
    saved = run("\n".join(blocks["save"] for blocks in BLOCKS.values() if blocks), folder)
    assert saved.returncode == 0, saved.stderr
    return folder


@pytest.mark.parametrize("title", [title for title, blocks in BLOCKS.items() if blocks])
def test_loaded(title, folder):
    code = BLOCKS[title]["load"]
    assert ("import fastlstm\n" in code) == (title in NEEDS_US)
    loaded = run(code, folder)
    assert loaded.returncode == 0, loaded.stderr
    if title in NEEDS_US:
        forgotten = run(code.replace("import fastlstm\n", ""), folder)
        assert forgotten.returncode == 1
        assert SAYS[NEEDS_US[title]] in forgotten.stderr
