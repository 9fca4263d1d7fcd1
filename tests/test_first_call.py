"""What is compiled or exported is the first thing that a process does: nothing was looked up before."""

import subprocess
import sys

import pytest

WAYS = {
    "compile": "torch.compile(m, fullgraph=True, backend='eager')(x)[0].sum().backward()",
    "export": "torch.export.export(m, (x,), strict=True).module()(x)[0].sum().backward()",
}


@pytest.mark.parametrize(
    ("kind", "way"), [("LSTM", "compile"), ("GRU", "export"), ("CIFGLSTM", "compile"), ("LSTM", "export")]
)
def test_first_call(kind, way):
    code = f"import torch, fastlstm; m, x = fastlstm.{kind}(3, 4), torch.randn(5, 2, 3); {WAYS[way]}; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
