"""The README and the pages: their code runs, their links lead somewhere, and the reference has every public name."""

import importlib.util
import re
from pathlib import Path

import pytest

import fastlstm

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
CODE = re.compile(
    r"^```python\n(.*?)^```", re.S | re.M
)  # not "py": a piece of code; docs/deploying.md has its own test
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))


@pytest.mark.parametrize("page", [page for page in PAGES if CODE.search((ROOT / page).read_text())])
def test_code_runs(page):
    """One block after the other, as a reader would paste them."""
    code = "\n".join(CODE.findall((ROOT / page).read_text()))
    exec(compile(code, page, "exec"), {"__name__": "a page"})


def test_pages_with_code_are_read():
    assert len(CODE.findall((ROOT / "README.md").read_text())) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Those into this repository; `make docs` checks those between the pages, to their headings too."""
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


@pytest.mark.parametrize("module", [fastlstm, fastlstm.functional], ids=["fastlstm", "functional"])
def test_the_reference_has_every_public_name(module):
    parts = {"__version__", "functional", "loaders", "backends", "adapters"}  # modules, whose own names are listed
    aliases = {
        name for name in module.__all__ if name.endswith(("Result", "State", "Weights")) and name != "AttentionState"
    }
    named = set(re.findall(r"^::: fastlstm[\w.]*?\.(\w+)$", REFERENCE, re.M))
    assert set(module.__all__) - parts - (aliases - {"AttentionWeights"}) <= named


def test_docstrings_become_markdown():
    pytest.importorskip("griffe", reason="of the extra docs")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs/docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    text = "A cell:\n\n    h = c\n\nhx: zeros\n    where None.\nT (B): time\nOther: no.\n\n>>> f(1)\n2\n\nMore:\n>>> f(2)\n3"
    assert docstrings.as_markdown(text, {"hx", "T"}) == (
        "A cell:\n\n    h = c\n\n- `hx`: zeros\n    where None.\n- `T` (B): time\n\nOther: no.\n\n"
        "```pycon\n>>> f(1)\n2\n```\n\nMore:\n```pycon\n>>> f(2)\n3\n```"
    )
