"""The kernels touch nothing beside the tensors they are given: these lie beside pages whose touch ends the process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guard_pages import PAGE, beside_page

from fastlstm import backends

pytestmark = [
    pytest.mark.skipif(backends.extension_status() != "built", reason="the kernels need the C++ extension"),
    pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does"),
]

# A way of multiplying each: which, products/ says
ROWS = (
    "lstm T5 B7 I17 H33 {}",
    "lstm T5 B7 I18 H34 P18 L2 bi {}",
    "lstm T1 B1 I17 H33 {}",
    "lstm T1 B7 I17 H33 {}",
    "lstm T1 B37 I17 H35 {}",
    "lstm T1 B130 I17 H33 {}",
    "lstm T20 B1 I17 H33 {}",
    "lstm T3 B5 I19 H67 {}",
    "lstm T3 B65 I65 H65 reverse {}",
    "lstm T6 B5 I5 H17 lengths:6,4,1,0,0 resets:0.2 return_cells {}",
    "gru T5 B7 I17 H33 {}",
    "gru T1 B3 I17 H33 {}",
    "peephole_lstm T6 B4 I5 H17 P5 packed:6,5,3,1 {}",
    "cifg_peephole_lstm T5 B7 I17 H33 {}",
    "conv_lstm T3 B2 I4 H8 S5x7 k3 {}",
    "conv_lstm T3 B2 I20 H20 S5x7 k3 stride:2 bi {}",
    "conv_lstm T3 B2 I5 H33 S5x7 k3 {}",
    "conv_lstm T2 B2 I33 H35 S7x9 k5 {}",
    "conv_lstm T2 B3 I3 H17 S9 k1 {}",
    "attention_lstm T3 B5 I17 H33 S9 M21 A13 memory:9,0,3,1,9 need_weights {}",
    "attention_lstm T3 B5 I17 H33 L2 S9 M21 general feed:context {}",
)
CASES = [
    *(line.format(dtype) for line in ROWS for dtype in ("fp32", "bf16")),
    *(line.format(dtype) for line in ROWS[:4] for dtype in ("fp64", "fp16")),
    "attention_lstm T5 B3 I17 H33 S19 M33 dot feed:None fp64",
    "attention_lstm T5 B3 I17 H32 S19 M32 dot feed:None fp32",
    "lstm T3 B17 I65 H67 fp32 high",
    "gru T1 B65 I65 H67 fp32 high",
]


@pytest.mark.cpu
def test_nothing_beside_tensors_is_touched():
    """A process of its own, which may end: what it said last is the case."""
    program = [
        sys.executable,
        str(Path(__file__).with_name("guard_pages.py")),
        backends.forced_path() or "best",
        *CASES,
    ]
    found = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stdout[-300:] + found.stderr[-2000:]
    assert found.stdout.splitlines() == CASES


@pytest.mark.parametrize("place", ["end", "begin"])
def test_a_page_beside_a_tensor_ends_who_touches_it(place):
    inside, beyond = ("8", "12") if place == "end" else ("0", "-4")
    program = "\n".join(
        [
            "import ctypes, torch; from guard_pages import beside_page",
            f"t = beside_page(torch.ones(3), {place!r}); print(t.sum().item(), flush=True)",
            f"ctypes.string_at(t.data_ptr() + {inside}, 4); print('inside', flush=True)",
            f"ctypes.string_at(t.data_ptr() + {beyond}, 4)",
        ]
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert found.stdout == "3.0\ninside\n", found.stderr
    assert found.returncode == -signal.SIGSEGV, found.stderr


@pytest.mark.parametrize("place", ["end", "begin", "odd"])
def test_a_copy_beside_a_page_has_the_same_strides(place):
    t = torch.arange(24.0).view(4, 6)[:, ::2].t()
    copy = beside_page(t, place)
    torch.testing.assert_close(copy, t, rtol=0, atol=0)
    assert copy.stride() == t.stride()
    assert copy.data_ptr() % PAGE == {"end": PAGE - 23 * 4, "begin": 0, "odd": 4}[place]
