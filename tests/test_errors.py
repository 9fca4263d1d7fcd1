"""Bad arguments: PyTorch's exception and words where it has them, else the name, the expectation, the fact and the reason."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastlstm
from fastlstm.backends import VARIANTS
from fastlstm.modules import build

I, H, T, B = 3, 5, 4, 2

X = torch.ones(T, B, I)
PACKED = pack_sequence([torch.ones(4, I), torch.ones(2, I)])


def hx(*batch: int, h: int = H, c: int = H, layers: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(layers, *batch, h), torch.zeros(layers, *batch, c)


def outcome(kind: type, *args, **kwargs) -> str:
    """What a constructor says: its exception's class and words, or the module it built."""
    torch.manual_seed(0)
    with pytest.raises(Exception) as error:  # noqa: PT011
        raise Built(repr(kind(*args, **kwargs)).removeprefix("fastlstm."))
    return f"{error.type.__name__}: {error.value}"


class Built(Exception):
    """No error."""


NAN = math.nan
BAD_OPTIONS = [
    {"input_size": 0},
    {"input_size": -3},
    {"input_size": 3.0},
    {"input_size": True},
    {"input_size": NAN},
    {"input_size": None},
    {"input_size": torch.tensor(3)},
    {"hidden_size": 0},
    {"hidden_size": -1},
    {"hidden_size": 5.0},
    {"hidden_size": True},
    {"hidden_size": "5"},
    {"num_layers": 0},
    {"num_layers": -1},
    {"num_layers": 1.5},
    {"num_layers": NAN},
    {"num_layers": True},
    {"num_layers": "2"},
    {"bias": 1},
    {"bias": None},
    {"batch_first": 0},
    {"batch_first": "yes"},
    {"dropout": -0.1},
    {"dropout": 1.5},
    {"dropout": NAN},
    {"dropout": True},
    {"dropout": "a"},
    {"dropout": None},
    {"dropout": 0.5j},
    {"bidirectional": 1},
    {"bidirectional": None},
    {"proj_size": -1},
    {"proj_size": 5},
    {"proj_size": 1.5},
    {"proj_size": NAN},
    {"proj_size": True},
    {"proj_size": None},
    {"device": "nowhere"},
    {"dtype": torch.int32},
    {"dtype": "float32"},
    {"nonlinearity": "tanh"},
]


each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])


@each_kind
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_as_pytorch_does(kind, options):
    sizes = {"input_size": I, "hidden_size": H, "num_layers": 2}
    ours, theirs = (outcome(getattr(library, kind), **(sizes | options)) for library in (fastlstm, nn))
    assert ours.replace("Recurrent.__init__", "") == theirs.replace("RNNBase.__init__", "")


@pytest.mark.parametrize("cls", [fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
@pytest.mark.parametrize("options", BAD_OPTIONS, ids=str)
def test_bad_options_are_refused_by_every_variant(cls, options):
    sizes = {"input_size": I, "hidden_size": H, "num_layers": 2}
    ours, theirs = (outcome(kind, **(sizes | options)) for kind in (cls, nn.LSTM))
    ours = re.sub(r"(Recurrent|CIFGLSTM)\.__init__", "", ours).replace(cls.__name__, "LSTM")
    assert ours == theirs.replace("RNNBase.__init__", "")


def test_a_peephole_that_is_no_bool():
    with pytest.raises(TypeError, match="peephole should be of type bool, got: int"):
        fastlstm.CIFGLSTM(I, H, peephole=1)


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.GRU, fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
def test_missing_and_surplus_arguments(cls):
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'hidden_size'"):
        cls(3)
    with pytest.raises(TypeError, match="positional arguments but"):
        cls(3, 5, 2, True, False, 0.0, False, 0, None, None, "auto")


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.GRU, fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
def test_dropout_without_a_second_layer_warns_as_pytorch_does(cls):
    messages = []
    for kind in (nn.GRU if cls is fastlstm.GRU else nn.LSTM, cls):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last") as caught:
            kind(I, H, dropout=0.5)
        messages.append([str(w.message) for w in caught])
    assert messages[0] == messages[1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["cuda", "", None, 3, "Auto"])
def test_unknown_backend(variant, backend):
    expected = f"backend is {backend!r}, expected one of 'auto', 'numba', 'triton', 'reference'"
    with pytest.raises(ValueError, match=re.escape(expected)):
        build(variant, I, H, backend=backend)
    module = build(variant, I, H)
    module.backend = backend
    with pytest.raises(ValueError, match=re.escape(expected)):
        module(X)


SAME_AS_PYTORCH = {
    "1-D input": ({}, (X[0, 0],)),
    "4-D input": ({}, (X[None],)),
    "input size": ({}, (torch.ones(T, B, 7),)),
    "input size, unbatched": ({}, (torch.ones(T, 7),)),
    "input size, batch first": ({"batch_first": True}, (torch.ones(B, T, 7),)),
    "input dtype": ({}, (X.double(),)),
    "integer input": ({}, (X.long(),)),
    "complex input": ({}, (X.to(torch.complex64),)),
    "input device": ({}, (X.to("meta"),)),
    "weight device": ({"device": "meta"}, (X,)),
    "no steps": ({}, (X[:0],)),
    "no steps, no batch": ({}, (X[:0, :0],)),
    "no steps, unbatched": ({}, (X[:0, 0],)),
    "no steps, batch first, two directions": ({"batch_first": True, "bidirectional": True}, (X[:, :0],)),
    "h0 batch": ({}, (X, (hx(3)[0], hx(2)[1]))),
    "c0 batch": ({}, (X, (hx(2)[0], hx(3)[1]))),
    "h0 layers": ({"num_layers": 2}, (X, hx(2))),
    "h0 directions": ({"bidirectional": True}, (X, hx(2))),
    "h0 of batch first": ({"batch_first": True}, (X, hx(2))),
    "h0 size": ({}, (X, hx(2, h=7))),
    "c0 size": ({}, (X, hx(2, c=7))),
    "h0 of the cell's size": ({"proj_size": 2}, (X, hx(2))),
    "c0 of the projection's size": ({"proj_size": 2}, (X, hx(2, h=2, c=2))),
    "2-D states": ({}, (X, hx())),
    "2-D c0": ({}, (X, (hx(2)[0], hx()[1]))),
    "3-D states, unbatched": ({}, (X[:, 0], hx(1))),
    "3-D c0, unbatched": ({}, (X[:, 0], (hx()[0], hx(1)[1]))),
    "states, unbatched": ({}, (X[:, 0], hx(h=7))),
    "state device": ({}, (X, tuple(s.to("meta") for s in hx(2)))),
}


def refusals(cls: type, peer: type, options: dict, args: tuple) -> list[str]:
    words = []
    for module in (peer(I, H, **options), cls(I, H, **options)):
        with pytest.raises((ValueError, RuntimeError)) as error:
            module(*args)
        words.append(f"{error.type.__name__}: {error.value}")
    return words


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
@pytest.mark.parametrize(("options", "args"), SAME_AS_PYTORCH.values(), ids=SAME_AS_PYTORCH)
def test_bad_input_is_refused_as_pytorch_does(cls, options, args):
    theirs, ours = refusals(cls, nn.LSTM, options, args)
    assert ours == theirs


# What a GRU can refuse: it has no c0 and no projection
OF_A_GRU = {
    name: (options, (args[0], args[1][0]) if len(args) == 2 else args)
    for name, (options, args) in SAME_AS_PYTORCH.items()
    if "c0" not in name and "proj_size" not in options
}


@pytest.mark.parametrize(("options", "args"), OF_A_GRU.values(), ids=OF_A_GRU)
def test_bad_input_is_refused_as_pytorchs_gru_does(options, args):
    theirs, ours = refusals(fastlstm.GRU, nn.GRU, options, args)
    assert ours == theirs


def test_a_gru_has_no_projection():
    for library in (nn, fastlstm):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            library.GRU(I, H, proj_size=2)


def packed(*sizes: int, rows: int = 6, order: list[int] | None = None, dtype=torch.int64) -> PackedSequence:
    sorted_indices = None if order is None else torch.tensor(order)
    return PackedSequence(torch.ones(rows, I), torch.tensor(sizes, dtype=dtype), sorted_indices)


OUR_OWN = {
    "not a tensor": ((TypeError, "input is of type list, expected a Tensor or a PackedSequence"), ([X],)),
    "no input": ((TypeError, "input is of type NoneType, expected a Tensor or a PackedSequence"), (None,)),
    "sparse": ((RuntimeError, "input has layout torch.sparse_coo, expected torch.strided"), (X.to_sparse(),)),
    "one state": ((RuntimeError, "lstm expects two hidden states: hx is of length 1, expected"), (X, hx(2)[:1])),
    "three states": ((RuntimeError, "lstm expects two hidden states: hx is of length 3"), (X, (*hx(2), X))),
    "a tensor for states": ((RuntimeError, "lstm expects two hidden states: hx is of type Tensor"), (X, hx(2)[0])),
    "a number for states": ((RuntimeError, "lstm expects two hidden states: hx is of type int"), (X, 3)),
    "c0 is None": ((TypeError, "hx[1] is of type NoneType, expected a Tensor"), (X, (hx(2)[0], None))),
    "h0 dtype": (
        (RuntimeError, "hidden[0] has dtype torch.float64, expected torch.float32: the dtype of input and weights"),
        (X, (hx(2)[0].double(), hx(2)[1])),
    ),
    "c0 dtype": (
        (RuntimeError, "hidden[1] has dtype torch.float16, expected torch.float32"),
        (X, (hx(2)[0], hx(2)[1].half())),
    ),
    "packed size": (
        (RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 7"),
        (pack_sequence([torch.ones(4, 7)]),),
    ),
    "packed dtype": (
        (ValueError, "RNN input dtype (torch.float64) does not match weight dtype (torch.float32)"),
        (PACKED.double(),),
    ),
    "packed h0": ((RuntimeError, "Expected hidden[0] size (1, 2, 5), got [1, 3, 5]"), (PACKED, hx(3))),
    "packed c0": ((RuntimeError, "Expected hidden[1] size (1, 2, 5), got [1, 2, 7]"), (PACKED, hx(2, c=7))),
    "packed 3-D": (
        (RuntimeError, "input must have 2 dimensions, got 3: packed data is (sum of lengths, input_size)"),
        (PackedSequence(X, torch.tensor([2, 2, 2, 2])),),
    ),
    "packed no steps": ((RuntimeError, "Expected sequence length to be larger than 0 in RNN"), (packed(rows=0),)),
    "too few rows": ((ValueError, "batch_sizes sums to 7, expected 6: the rows of the packed data"), (packed(4, 3),)),
    "too many rows": ((ValueError, "batch_sizes sums to 5, expected 6: the rows of the packed data"), (packed(4, 1),)),
    "rising": ((ValueError, "batch_sizes is [2, 3, 1], expected not to increase: the longest"), (packed(2, 3, 1),)),
    "negative": ((ValueError, "batch_sizes is [4, 4, -2], expected not to"), (packed(4, 4, -2),)),
    "int32 sizes": (
        (ValueError, "batch_sizes has dtype torch.int32 and shape (3,), expected torch.int64 and (T,)"),
        (packed(3, 2, 1, dtype=torch.int32),),
    ),
    "2-D sizes": (
        (ValueError, "batch_sizes has dtype torch.int64 and shape (1, 2), expected torch.int64 and (T,)"),
        (PackedSequence(torch.ones(6, I), torch.tensor([[4, 2]])),),
    ),
    "short order": (
        (ValueError, "sorted_indices has shape (2,), expected (3,): one index for each sequence"),
        (packed(3, 2, 1, order=[1, 0]),),
    ),
}


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.PeepholeLSTM, fastlstm.CIFGLSTM])
@pytest.mark.parametrize(("error", "args"), OUR_OWN.values(), ids=OUR_OWN)
def test_bad_input_is_refused_with_a_reason(cls, error, args):
    with pytest.raises(error[0], match=re.escape(error[1])):
        cls(I, H)(*args)


GRUS_OWN = {name: (error, args) for name, (error, args) in OUR_OWN.items() if len(args) == 1} | {
    "two states": ((TypeError, "hx is of type tuple, expected a Tensor: a GRU has one state"), (X, hx(2))),
    "a number for a state": ((TypeError, "hx is of type int, expected a Tensor: a GRU has one state"), (X, 3)),
    "h0 dtype": (
        (RuntimeError, "hidden has dtype torch.float64, expected torch.float32: the dtype of input and weights"),
        (X, hx(2)[0].double()),
    ),
    "packed h0": ((RuntimeError, "Expected hidden size (1, 2, 5), got [1, 3, 5]"), (PACKED, hx(3)[0])),
}


@pytest.mark.parametrize(("error", "args"), GRUS_OWN.values(), ids=GRUS_OWN)
def test_bad_input_of_a_gru_is_refused_with_a_reason(error, args):
    with pytest.raises(error[0], match=re.escape(error[1])):
        fastlstm.GRU(I, H)(*args)


LENGTHS = {
    "too few": (X, [1], ValueError, "lengths has shape (1,), expected (2,): one length for each sequence of the batch"),
    "a number": (X, 3, ValueError, "lengths has shape (), expected (2,)"),
    "2-D": (X, torch.ones(2, 1, dtype=torch.int64), ValueError, "lengths has shape (2, 1), expected (2,)"),
    "negative": (X, [1, -1], ValueError, "lengths holds -1, expected values from 0 to 4: the number of time steps"),
    "too long": (X, [5, 1], ValueError, "lengths holds 5, expected values from 0 to 4"),
    "no values": (
        X,
        torch.zeros(2, dtype=int, device="meta"),
        ValueError,
        "lengths is on the device meta, expected one that",
    ),
    "floats": (X, [1.0, 2.0], TypeError, "lengths has dtype torch.float32, expected integers: each is a number of"),
    "float tensor": (X, torch.ones(2), TypeError, "lengths has dtype torch.float32, expected integers"),
    "nan": (X, [NAN, 1.0], TypeError, "lengths has dtype torch.float32, expected integers"),
    "bools": (X, [True, False], TypeError, "lengths has dtype torch.bool, expected integers"),
    "packed": (PACKED, [4, 2], ValueError, "lengths is given, expected None: a PackedSequence has its own"),
    "unbatched": (X[:, 0], [4], ValueError, "lengths is given, expected None: an unbatched input is one sequence"),
    "no steps": (X[:0], [0, 0], RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
}


@each_kind
@pytest.mark.parametrize(("input", "lengths", "error", "words"), LENGTHS.values(), ids=LENGTHS)
def test_bad_lengths(kind, input, lengths, error, words):
    with pytest.raises(error, match=re.escape(words)):
        getattr(fastlstm, kind)(I, H)(input, lengths=lengths)


@each_kind
def test_lengths_count_steps_where_the_batch_is_first(kind):
    with pytest.raises(ValueError, match=re.escape("lengths holds 4, expected values from 0 to 2")):
        getattr(fastlstm, kind)(I, H, batch_first=True)(X, lengths=[4, 1, 1, 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_is_keyword_only(variant):
    with pytest.raises(TypeError, match="positional arguments but"):
        build(variant, I, H)(X, None, [4, 2])


def test_a_gru_has_no_cells():
    with pytest.raises(TypeError, match="unexpected keyword argument 'return_cells'"):
        fastlstm.GRU(I, H)(X, return_cells=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_error_leaves_nothing_half_done(variant):
    module = build(variant, I, H, num_layers=2, dropout=0.5)
    before, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match="lengths holds 9"):
        module(X, lengths=[9, 1])
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(w.grad is None for w in module.parameters())
