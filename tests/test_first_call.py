"""What is compiled or exported is the first thing that a process does: nothing was looked up before."""

from fresh import run_each

WAYS = {
    "compile": "torch.compile(m, fullgraph=True, backend='eager')(x)[0].sum().backward()",
    "export": "torch.export.export(m, (x,), strict=True).module()(x)[0].sum().backward()",
}
CALLS = [("LSTM", "compile"), ("GRU", "export"), ("CIFGLSTM", "compile"), ("LSTM", "export")]


def test_first_call(tmp_path):
    codes = [
        f"import torch, fastlstm; m, x = fastlstm.{kind}(3, 4), torch.randn(5, 2, 3); {WAYS[way]}; print('ok')"
        for kind, way in CALLS
    ]
    said = dict(zip(CALLS, run_each(codes, "import torch, torch._dynamo, torch.export, numba", tmp_path), strict=True))
    assert said == dict.fromkeys(CALLS, ("ok\n", 0))
