"""`forget_bias`: into the bias of the forget gate when weights are set, and nowhere else."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.convert import patch

# a module, the first of its forget gate's rows in units of H, and the sign
KINDS = {
    "LSTM": (fastlstm.LSTM, 1, 1),
    "PeepholeLSTM": (fastlstm.PeepholeLSTM, 1, 1),
    "CIFGLSTM": (fastlstm.CIFGLSTM, 0, -1),
    "CIFGLSTM with peepholes": (lambda *args, **kw: fastlstm.CIFGLSTM(*args, peephole=True, **kw), 0, -1),
    "LSTMCell": (fastlstm.LSTMCell, 1, 1),
    "PeepholeLSTMCell": (fastlstm.PeepholeLSTMCell, 1, 1),
    "CIFGLSTMCell": (fastlstm.CIFGLSTMCell, 0, -1),
    "CIFGLSTMCell with peepholes": (lambda *args, **kw: fastlstm.CIFGLSTMCell(*args, peephole=True, **kw), 0, -1),
}


def of_kernel(make, **fixed):
    return lambda *args, **kw: make(*args, 3, **fixed, **kw)


IMAGES = {
    "ConvLSTM1d": (of_kernel(fastlstm.ConvLSTM1d), 1, 1),
    "ConvLSTM2d with peepholes": (of_kernel(fastlstm.ConvLSTM2d, peephole="channel"), 1, 1),
    "ConvLSTM3d, coupled": (of_kernel(fastlstm.ConvLSTM3d, coupled=True), 0, -1),
    "ConvLSTM2dCell": (of_kernel(fastlstm.ConvLSTM2dCell), 1, 1),
    "ConvLSTM1dCell, coupled": (of_kernel(fastlstm.ConvLSTM1dCell, coupled=True, peephole="channel"), 0, -1),
}
DECODERS = {
    "AttentionLSTM": (lambda *args, **kw: fastlstm.AttentionLSTM(*args, 2, **kw), 1, 1),
    "AttentionLSTM, coupled": (lambda *args, **kw: fastlstm.AttentionLSTM(*args, 2, coupled=True, **kw), 0, -1),
}
EVERY = KINDS | IMAGES | DECODERS
each_kind = pytest.mark.parametrize("kind", EVERY)


# as many biases as each can have
LAYERS = {"num_layers": 2}
DIRECTIONS = {**LAYERS, "bidirectional": True}
MORE = {
    kind: LAYERS if kind in DECODERS else DIRECTIONS if kind in IMAGES else {**DIRECTIONS, "proj_size": 2}
    for kind in EVERY
}
I, H = 3, 5


def seeded(make, *args, **options) -> nn.Module:
    torch.manual_seed(7)
    return make(*args, **options)


def expected(kind: str, plain: nn.Module, forget_bias: float) -> dict[str, torch.Tensor]:
    _, gate, sign = EVERY[kind]
    weights = {name: w.detach().clone() for name, w in plain.named_parameters()}
    for name, w in weights.items():
        if name.startswith("bias_ih"):
            w[gate * H : (gate + 1) * H] += sign * forget_bias
    return weights


@each_kind
def test_at_construction_and_reset(kind):
    make, options = EVERY[kind][0], {} if "Cell" in kind else MORE[kind]
    plain, biased = seeded(make, I, H, **options), seeded(make, I, H, **options, forget_bias=1.5)
    weights = expected(kind, plain, 1.5)
    assert sum(name.startswith("bias_ih") for name in weights) == options.get("num_layers", 1) * (
        2 if "bidirectional" in options else 1
    )
    torch.testing.assert_close(dict(biased.named_parameters()), weights, rtol=0, atol=0)
    seeded(plain.reset_parameters)
    weights = expected(kind, plain, 1.5)
    for twin in (biased, copy.deepcopy(biased), pickle.loads(pickle.dumps(biased))):
        seeded(twin.reset_parameters)
        torch.testing.assert_close(dict(twin.named_parameters()), weights, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_remember(kind):
    """A large one keeps the initial cell state: f is 1, and for the coupled i is 0."""
    module = KINDS[kind][0](I, H, forget_bias=30)
    x, c0 = torch.randn(1, 2, I), torch.randn(1, 2, H)
    state = (torch.zeros(1, 2, H), c0)
    if "Cell" in kind:
        _, c = module(x[0], (state[0][0], c0[0]))
    else:
        _, (_, (c,)) = module(x, state)
    if module.variant.coupled:
        torch.testing.assert_close(c, c0[0])
    else:
        i, _, g, _ = (x[0] @ plain_weight(module, "weight_ih").T + biases(module)).chunk(4, -1)
        if not module.variant.peepholes:
            torch.testing.assert_close(c, c0[0] + i.sigmoid() * g.tanh())


def plain_weight(module: nn.Module, name: str) -> torch.Tensor:
    return getattr(module, name) if hasattr(module, name) else getattr(module, f"{name}_l0")


def biases(module: nn.Module) -> torch.Tensor:
    return plain_weight(module, "bias_ih") + plain_weight(module, "bias_hh")


@each_kind
def test_zero_leaves_no_trace(kind):
    make = EVERY[kind][0]
    plain, zero, without = make(I, H), make(I, H, forget_bias=0), make(I, H, bias=False, forget_bias=0.0)
    assert vars(zero).keys() == vars(plain).keys()
    assert repr(zero) == repr(plain)
    assert "forget_bias" not in repr(without)


@each_kind
def test_it_is_shown(kind):
    shown = repr(EVERY[kind][0](I, H, forget_bias=1, backend="reference"))
    assert "(3, 5" in shown
    assert ", forget_bias=1.0, backend='reference'" in shown


def test_where_weights_are_made_late():
    module = fastlstm.CIFGLSTM(I, H, forget_bias=2.0, device="meta", dtype=torch.float64)
    module.to_empty(device="cpu").reset_parameters()
    assert (module.bias_ih_l0[:H] < -1).all()
    assert (module.bias_ih_l0[H:].abs() < 1).all()


def test_half_dtypes_at_large_sizes():
    """Rows are counted in integers: bfloat16 has none beyond 256."""
    module = fastlstm.LSTM(2, 300, forget_bias=4.0, dtype=torch.bfloat16)
    assert ((module.bias_ih_l0 > 2).nonzero().flatten() == torch.arange(300, 600)).all()


def test_to_torch_and_patch():
    module = fastlstm.LSTM(I, H, forget_bias=1.0)
    weights = {name: w.clone() for name, w in module.state_dict().items()}
    fastlstm.to_torch(module)
    assert vars(module).keys() == vars(nn.LSTM(I, H)).keys()
    torch.testing.assert_close(dict(module.state_dict()), weights)
    fastlstm.convert(module)
    assert "forget_bias" not in repr(module)
    with patch():
        assert "forget_bias" not in repr(nn.LSTM(I, H))


def test_errors():
    for make, _, _ in EVERY.values():
        with pytest.raises(ValueError, match=r"forget_bias is 1.0, expected 0.0 with bias=False: there is no bias_ih"):
            make(I, H, bias=False, forget_bias=1.0)
    for make in (fastlstm.GRU, fastlstm.GRUCell):
        with pytest.raises(ValueError, match=r"forget_bias is 1, expected 0.0: a gru has no forget gate"):
            make(I, H, forget_bias=1)
    for value in (True, "1", None, torch.ones(1)):
        with pytest.raises(TypeError, match=r"forget_bias is .*, expected a number: it is added to bias_ih"):
            fastlstm.LSTM(I, H, forget_bias=value)
    with pytest.raises(ValueError, match="forget_bias is nan, expected a finite number"):
        fastlstm.LSTM(I, H, forget_bias=float("nan"))
    module = nn.utils.parametrizations.weight_norm(fastlstm.LSTMCell(I, H, forget_bias=1.0), "bias_ih")
    with pytest.raises(RuntimeError, match="bias_ih is no Parameter of this ParametrizedLSTMCell, expected one"):
        module.reset_parameters()
