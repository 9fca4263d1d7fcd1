"""Bad arguments of a cell: PyTorch's exception and words where it has them, else the name, the expectation and the fact."""

import re

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import functional

I, H = 3, 5

X, S = torch.ones(2, I), torch.zeros(2, H)
# The same words as PyTorch's; states are those of the LSTM
SAME_AS_PYTORCH = {
    "0-D input": (torch.tensor(1.0),),
    "3-D input": (X[None],),
    "input size": (torch.ones(2, 7),),
    "input size, unbatched": (torch.ones(7),),
    "h batch": (X, (torch.zeros(3, H), S)),
    "c batch": (X, (S, torch.zeros(3, H))),
    "h size": (X, (torch.zeros(2, 7), S)),
    "c size": (X, (S, torch.zeros(2, 7))),
    "3-D h": (X, (S[None], S)),
    "3-D c": (X, (S, S[None])),
    "0-D h": (X, (S[0, 0], S)),
    "1-D states": (X, (S[0], S[0])),
    "1-D c": (X, (S, S[0])),
    "2-D states, unbatched": (X[0], (S[:1], S[:1])),
    "2-D c, unbatched": (X[0], (S[0], S)),
    "size, unbatched": (X[0], (torch.zeros(7), S[0])),
    "no tensor": (3,),
}
BAD = [("LSTMCell", name, args) for name, args in SAME_AS_PYTORCH.items()] + [
    ("GRUCell", name, (args[0], args[1][0]) if len(args) == 2 else args)
    for name, args in SAME_AS_PYTORCH.items()
    if "c" not in re.split(r"\W", name)
]


@pytest.mark.parametrize(
    ("kind", "args"), [(kind, args) for kind, _, args in BAD], ids=[f"{k}, {n}" for k, n, _ in BAD]
)
def test_bad_input_is_refused_as_pytorch_does(kind, args):
    words = []
    for library in (nn, fastlstm):
        with pytest.raises((ValueError, RuntimeError, AttributeError)) as error:
            getattr(library, kind)(I, H)(*args)
        words.append(f"{error.type.__name__}: {error.value}")
    assert words[1] == words[0]


OUR_OWN = {
    "one state": (X, (S,), RuntimeError, "lstm_cell expects two hidden states: hx is of length 1, expected a tuple"),
    "three states": (X, (S, S, S), RuntimeError, "lstm_cell expects two hidden states: hx is of length 3"),
    "stacked states": (
        X,
        torch.stack([S, S]),
        RuntimeError,
        "lstm_cell expects two hidden states: hx is of type Tensor",
    ),
    "input dtype": (
        X.double(),
        None,
        RuntimeError,
        "w_ih is torch.float32 on cpu, expected torch.float64 on cpu: those of",
    ),
    "h dtype": (X, (S.double(), S), RuntimeError, "hidden0 is torch.float64 on cpu, expected torch.float32 on cpu"),
    "c dtype": (X, (S, S.half()), RuntimeError, "hidden1 is torch.float16 on cpu, expected torch.float32 on cpu"),
    "c device": (X, (S, S.to("meta")), RuntimeError, "hidden1 is torch.float32 on meta, expected torch.float32 on cpu"),
    "sparse": (X.to_sparse(), None, RuntimeError, "input has layout torch.sparse_coo, expected torch.strided"),
}


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(("input", "hx", "error", "words"), OUR_OWN.values(), ids=OUR_OWN)
def test_bad_input_is_refused_with_a_reason(backend, input, hx, error, words):
    with pytest.raises(error, match=re.escape(words)):
        fastlstm.LSTMCell(I, H, backend=backend)(input, hx)


W4, W3, P = (torch.ones(20, I), torch.ones(20, H)), (torch.ones(15, I), torch.ones(15, H)), torch.ones(2, H)
WEIGHTS = {
    "lstm, three gates": (
        functional.lstm_cell,
        (S, S),
        W3,
        "w_ih has shape (15, 3), expected (20, 3): input size 3 and hidden",
    ),
    "lstm, bias": (functional.lstm_cell, (S, S), (*W4, W4[0][:, 0], P), "b_hh has shape (2, 5), expected (20,)"),
    "gru, four gates": (functional.gru_cell, S, W4, "w_ih has shape (20, 3), expected (15, 3)"),
    "gru, w_hh": (functional.gru_cell, S, (W3[0], W4[1]), "w_hh has shape (20, 5), expected (15, 5)"),
    "cifg, four gates": (functional.cifg_lstm_cell, (S, S), W4, "w_ih has shape (20, 3), expected (15, 3)"),
    "cifg, peepholes": (
        functional.cifg_lstm_cell,
        (S, S),
        (*W3, None, None, torch.ones(3, H)),
        "w_peephole has shape (3, 5), expected (2, 5)",
    ),
    "peepholes": (
        functional.peephole_lstm_cell,
        (S, S),
        (*W4, None, None, P),
        "w_peephole has shape (2, 5), expected (3, 5)",
    ),
}


@pytest.mark.parametrize(("run", "hx", "weights", "words"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_weights(run, hx, weights, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        run(X, hx, *weights)


def test_bad_options():
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of"):
        fastlstm.GRUCell(I, H, backend="cuda")
    with pytest.raises(TypeError, match="peephole should be of type bool, got: int"):
        fastlstm.CIFGLSTMCell(I, H, peephole=2)
    with pytest.raises(TypeError, match="positional arguments but"):
        fastlstm.LSTMCell(I, H, True, None, None, "auto")
