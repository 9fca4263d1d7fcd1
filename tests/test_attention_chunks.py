"""A decoder's backward takes its steps in chunks of about 128 rows: these cases have several, and sequences that end within."""

import pytest
import torch

import fastlstm

pytestmark = pytest.mark.cpu

T, B, S, I, H, M, L = 44, 14, 5, 3, 6, 6, 2
KINDS = {
    "attentional": {},
    "dropped": {"output_dropout": 0.4, "dropout": 0.2},
    "context": {"feed": "context", "output_dropout": 0.4, "query_layer": 0},
    "before": {"attend": "before", "feed": None, "query_layer": 0},
    "dot": {"attention": "dot"},
    "scaled": {"attention": "scaled_dot", "output": "linear"},
    "dot before": {"attention": "dot", "attend": "before", "feed": None},
    "general hidden": {"attention": "general", "feed": "context", "output": "hidden"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_several_chunks(kind: str) -> None:
    torch.manual_seed(0)
    module = fastlstm.AttentionLSTM(I, H, M, L, dtype=torch.float64, **KINDS[kind])
    lengths = [*(T - 3 * b for b in range(B - 1)), 0]
    x, memory = (torch.randn(n, B, k, dtype=torch.float64, requires_grad=True) for n, k in ((T, I), (S, M)))
    dy = torch.randn(T, B, H, dtype=torch.float64)
    found = {}
    for backend in ("kernels", "reference"):
        module.backend = "auto" if backend == "kernels" else backend
        torch.manual_seed(1)  # of masks
        y, state = module(x, memory, lengths=lengths, memory_lengths=[b % (S + 1) for b in range(B)])
        fed = 0 if state.fed is None else state.fed.sum()
        of = [x, memory, *module.parameters()]
        found[backend] = [y, *torch.autograd.grad((y * dy).sum() + state.h.sum() + state.c.sum() + fed, of)]
    assert sum(lengths) > 256 + T  # rows: several chunks and more steps than one holds
    torch.testing.assert_close(found["kernels"], found["reference"], rtol=1e-9, atol=1e-11)


def test_a_single_step_of_many_rows() -> None:
    """The last of several layers has x alone, of many rows: their gradients are products of strips."""
    torch.manual_seed(0)
    module = fastlstm.AttentionLSTM(I, 48, 48, L, attention="dot", dtype=torch.float64)
    x, memory = torch.randn(1, 130, I, dtype=torch.float64), torch.randn(S, 130, 48, dtype=torch.float64)
    dy = torch.randn(1, 130, 48, dtype=torch.float64)
    found = []
    for backend in ("auto", "reference"):
        module.backend = backend
        found.append(torch.autograd.grad((module(x, memory)[0] * dy).sum(), list(module.parameters())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
