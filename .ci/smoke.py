"""Uses an installed wheel from a directory of its own: what is imported, and that it computes what nn.LSTM does.

--without-extension: of a wheel that was built where no compiler works.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import fastlstm
from fastlstm.backends import extension_status
from fastlstm.cli.info import info

prefix = Path(sys.prefix).resolve()
built = "--without-extension" not in sys.argv
for name in ("fastlstm", "fastlstm.kernels", "fastlstm.benchmarks", *["fastlstm._C"] * built):
    origin = Path(find_spec(name).origin).resolve()
    assert origin.is_relative_to(prefix), f"{name} comes from {origin}, not from {prefix}"
for name in ("kernels", "benchmarks"):
    assert find_spec(name) is None, f"{name} is a global name: {find_spec(name)}"
assert (extension_status() == "built") == built, extension_status()
info()

torch.manual_seed(0)
fast, oracle = (
    fastlstm.LSTM(5, 17, num_layers=2, bidirectional=True),
    torch.nn.LSTM(5, 17, num_layers=2, bidirectional=True),
)
fast.load_state_dict(oracle.state_dict())
x = torch.randn(7, 3, 5)
grads = []
for module in (fast, oracle):
    y, (h_n, c_n) = module(x)
    (y.square().sum() + h_n.sum() + c_n.sum()).backward()
    grads.append([y, h_n, c_n, *(weight.grad for weight in module.parameters())])
for ours, theirs in zip(*grads, strict=True):
    torch.testing.assert_close(ours, theirs)
if built:
    assert torch.ops.fastlstm.lstm_fwd
    assert fastlstm.backends.explain("lstm", "cpu", torch.float32).backend == "numba"
versions = f"fastlstm {fastlstm.__version__} beside torch {torch.__version__}, Python {sys.version.split()[0]}"
print(f"{versions}: outputs, states and {len(grads[0]) - 3} gradients agree with nn.LSTM")
