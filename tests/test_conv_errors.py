"""What is said of bad arguments of the ConvLSTM: the name, what is expected, what is there, and why."""

import re

import pytest
import torch
from helpers import random
from test_conv_lstm import KINDS, B, C, H, T
from torch import Tensor, nn

import fastlstm
from fastlstm.functional import conv_lstm

S = (4, 5)


def module(**options) -> nn.Module:
    return KINDS[2](C, H, 3, **options)


def cell(**options) -> nn.Module:
    return fastlstm.ConvLSTM2dCell(C, H, 3, **options)


def maps(*shape: int) -> Tensor:
    return torch.zeros(shape)


def x() -> Tensor:
    return maps(T, B, C, *S)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return maps(*shape), maps(*shape)


# arguments of ConvLSTM2d beside the channels and a kernel of 3; what is said
CONSTRUCTORS: list[tuple[dict, type[Exception], str]] = [
    ({"hidden_channels": 0}, ValueError, "hidden_channels is 0, expected at least 1"),
    ({"hidden_channels": 2.0}, TypeError, "hidden_channels should be of type int, got: float"),
    ({"hidden_channels": [3, 4]}, ValueError, "hidden_channels is [3, 4], a list of 2, expected one of 1: an entry for each"),
    ({"hidden_channels": (3, 4)}, TypeError,
        "hidden_channels is (3, 4), expected an int, or a list with one for each of num_layers"),
    ({"in_channels": True}, TypeError, "in_channels should be of type int, got: bool"),
    ({"num_layers": 0}, ValueError, "num_layers is 0, expected at least 1"),
    ({"kernel_size": (3, 3, 3)}, ValueError,
        "kernel_size is (3, 3, 3), expected an int or a tuple of 2: one for each dimension"),
    ({"kernel_size": 0}, ValueError, "kernel_size is 0, expected at least 1 in each dimension of the image"),
    ({"kernel_size": [3, 5]}, ValueError, "kernel_size is [3, 5], a list of 2, expected one of 1: an entry for each of "
        "num_layers; a tuple has a number for each dimension"),
    ({"stride": (1, 0)}, ValueError, "stride is (1, 0), expected at least 1"),
    ({"dilation": "2"}, ValueError, "dilation is '2', expected an int or a tuple of 2"),
    ({"padding": "full"}, ValueError, "padding is 'full', expected 'same', 'valid' or numbers"),
    ({"padding": -1}, ValueError,
        "padding is -1, expected 'same', 'valid', an int, or a tuple of 2 ints or pairs (before, after)"),
    ({"padding": (1, 2, 3)}, ValueError, "padding is (1, 2, 3), expected"),
    ({"padding": ((1, 2), (3,))}, ValueError, "padding is ((1, 2), (3,)), expected"),
    ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ({"coupled": "yes"}, TypeError, "coupled should be of type bool, got: str"),
    ({"checkpoint": None}, TypeError, "checkpoint should be of type bool, got: NoneType"),
    ({"peephole": True}, ValueError, "peephole is True, expected None, 'channel' or 'hadamard'"),
    ({"peephole": "hadamard"}, ValueError,
        "spatial_size is None, expected the size of the input's image: 'hadamard' peepholes have "
        "a weight for each pixel; peephole='channel' has one for each channel"),
    ({"peephole": "hadamard", "spatial_size": (4, 5, 6)}, ValueError,
        "spatial_size is (4, 5, 6), expected an int or a tuple of 2"),
    ({"peephole": "hadamard", "spatial_size": 2, "padding": "valid"}, ValueError,
        "spatial_size has an image of (2, 2), expected one that a "
        "kernel of (3, 3) fits in"),
    ({"dtype": torch.complex64}, ValueError, "dtype is torch.complex64, expected a floating-point one"),
    ({"dtype": torch.int64}, ValueError, "dtype is torch.int64, expected a floating-point one"),
    ({"dropout": 2}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"backend": "cuda"}, ValueError, "backend is 'cuda', expected one of 'auto'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "said"), CONSTRUCTORS, ids=[said for *_, said in CONSTRUCTORS])
def test_bad_constructors(options, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        KINDS[2](**{"in_channels": C, "hidden_channels": H, "kernel_size": 3} | options)
    own = {"num_layers", "dropout", "checkpoint"} & options.keys() or isinstance(options.get("kernel_size"), list)
    if own or isinstance(options.get("hidden_channels"), (list, tuple)):
        return
    with pytest.raises(kind, match=re.escape(said)):
        fastlstm.ConvLSTM2dCell(**{"in_channels": C, "hidden_channels": H, "kernel_size": 3} | options)


def test_lists_stay_the_caller_s():
    sizes, kernels = [3, 4], [3, 5]
    ours = KINDS[2](C, sizes, kernels, 2)
    sizes[0] = kernels[0] = 7
    assert (ours.hidden_channels, ours.kernel_size) == ([3, 4], [3, 5])


def test_cells_have_no_lists():
    for several in ([H], (H,)):
        with pytest.raises(TypeError, match=f"hidden_channels should be of type int, got: {type(several).__name__}"):
            fastlstm.ConvLSTM2dCell(C, several, 3)


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
        module(dropout=0.5)


# what is called; what is said
CALLS = {
    "no tensor": (lambda: module()([1.0]), TypeError, "input is of type list, expected a Tensor"),
    "a sparse tensor": (lambda: module()(x().to_sparse()), RuntimeError,
        "input has layout torch.sparse_coo, expected torch.strided"),
    "of another rank": (lambda: module()(maps(T, C)), ValueError, "ConvLSTM2d: Expected input to be 4D or 5D, got 2D instead: "
        "(T, C, H, W) unbatched, or (T, B, C, H, W)"),
    "of another rank, batch first": (lambda: module(batch_first=True)(maps(T, C)), ValueError, "or (B, T, C, H, W)"),
    "of three dimensions": (lambda: KINDS[3](C, H, 3)(x().unsqueeze(0).unsqueeze(0)), ValueError,
        "got 7D instead: (T, C, D, H, W)"),
    "of other channels": (lambda: module()(maps(T, B, *S, C)), RuntimeError,
        "input has 4 channels in its shape (5, 3, 4, 5, 2), "
        "expected 2: the input channels of the weights; they stand before the image (H, W)"),
    "of another dtype": (lambda: module()(x().double()), ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype"),
    "on another device": (lambda: module()(x().to("meta")), RuntimeError,
        "Input and parameter tensors are not at the same device"),
    "no steps": (lambda: module()(maps(0, B, C, *S)), RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    "an image that is too small": (lambda: module(padding="valid")(maps(T, B, C, 2, 5)), RuntimeError,
        "input has an image of (2, 5), "
        "expected one that a kernel of (3, 3) fits in: with padding (0, 0, 0, 0) and dilation (1, 1) it gives (0, 3)"),
    "another image than spatial_size": (lambda: module(peephole="hadamard", spatial_size=S)(maps(T, B, C, 4, 6)), RuntimeError,
        "input has an image of (4, 6), expected (4, 5), that of spatial_size: 'hadamard' peepholes are of one image; 'channel' "
        "takes any"),
    "another image, where a pixel is enough": (lambda: module(peephole="hadamard", spatial_size=1)(x()), RuntimeError,
        "input has an image of (4, 5), expected (1, 1), that of spatial_size"),
    "another image of the same output": (lambda: module(peephole="hadamard", spatial_size=(4, 6), stride=2)(x()), RuntimeError,
        "input has an image of (4, 5), expected (4, 6), that of spatial_size"),
    "another image of a cell": (lambda: cell(peephole="hadamard", spatial_size=1)(maps(B, C, *S)), RuntimeError,
        "input has an image of (4, 5), expected (1, 1), that of spatial_size"),
    "a forecast, where a pixel is enough": (
        lambda: module(peephole="hadamard", spatial_size=2, stride=2)(None, pair(1, B, H, *S), steps=1), RuntimeError,
        "h0 has an image of (4, 5), expected (1, 1), that of spatial_size: 'hadamard'"),
    "no pair": (lambda: module()(x(), maps(1, B, H, *S)), RuntimeError, "hx is of type Tensor, expected a pair (h0, c0)"),
    "no pair but a triple": (lambda: module()(x(), [1, 2, 3]), RuntimeError, "hx is of length 3, expected a pair (h0, c0)"),
    "lists of states": (lambda: module()(x(), ([1], [2])), TypeError, "hx[0] is of type list, expected a Tensor"),
    "no lists of states": (lambda: KINDS[2](C, [3, 4], 3, 2)(x(), pair(2, B, H, *S)), TypeError,
        "hx[0] is of type Tensor, expected a "
        "list of Tensors: the layers have different hidden_channels, and so a state each"),
    "no state": (lambda: KINDS[2](C, [3, 4], 3, 2)(x(), ([None, maps(1, B, 4, *S)],) * 2), TypeError,
        "hx[0][0] is of type NoneType, expected a Tensor: the state of a layer"),
    "too few states": (lambda: KINDS[2](C, [3, 4], 3, 2)(x(), ([maps(1, B, 3, *S)],) * 2), ValueError,
        "hx[0] has 1 tensors, expected 2"),
    "a state of another image": (lambda: module(stride=2)(x(), pair(1, B, H, *S)), RuntimeError,
        "h0 has shape (1, 3, 3, 4, 5), "
        "expected (1, 3, 3, 2, 3): layers x directions, batch, hidden channels and the image of the output"),
    "a state of another batch": (lambda: module()(x(), pair(1, 1, H, *S)), RuntimeError,
        "h0 has shape (1, 1, 3, 4, 5), expected (1, 3,"),
    "a batched state": (lambda: module()(x()[:, 0], pair(1, B, H, *S)), RuntimeError,
        "expected (1, 3, 4, 5): layers x directions, hidden"),
    "a state of a list": (lambda: KINDS[2](C, [3, 4], 3, 2)(x(), ([maps(1, B, 3, *S)] * 2,) * 2), RuntimeError,
        "h0[1] has shape (1, 3, 3, 4, 5), expected (1, 3, 4, 4, 5): directions, batch"),
    "a state of another dtype": (lambda: module()(x(), (maps(1, B, H, *S), maps(1, B, H, *S).double())), RuntimeError,
        "c0 has dtype torch.float64, expected torch.float32"),
    "lengths of another batch": (lambda: module()(x(), lengths=[1, 2]), ValueError, "lengths has shape (2,), expected (3,)"),
    "lengths that are too long": (lambda: module()(x(), lengths=[1, 2, 6]), ValueError,
        "lengths holds 6, expected values from 0 to 5"),
    "lengths of one sequence": (lambda: module()(x()[:, 0], lengths=[5]), ValueError,
        "lengths is given, expected None: an unbatched input"),
    "resets of maps": (lambda: module()(x(), reset=x().bool()), ValueError, "reset has shape (5, 3, 2, 4, 5), expected (5, 3)"),
    "resets of another dtype": (lambda: module()(x(), reset=maps(T, B)), TypeError,
        "reset has dtype torch.float32, expected torch.bool"),
    "neither input nor steps": (lambda: module()(None), ValueError, "input is None and so is steps, expected one of them"),
    "input and steps": (lambda: module()(x(), steps=2), ValueError, "steps is 2, expected None where there is an input"),
    "no steps ahead": (lambda: module()(None, pair(1, B, H, *S), steps=0), ValueError,
        "steps is 0, expected an int of at least 1"),
    "half a step": (lambda: module()(None, pair(1, B, H, *S), steps=1.5), ValueError,
        "steps is 1.5, expected an int of at least 1"),
    "a forecast from nothing": (lambda: module()(None, steps=2), ValueError,
        "hx is None, expected (h0, c0) where input is None"),
    "a forecast from behind": (lambda: module(bidirectional=True)(None, pair(2, B, H, *S), steps=2), ValueError,
        "bidirectional is True, expected False where input is None: a forecast has no end to start from"),
    "a forecast of lengths": (lambda: module()(None, pair(1, B, H, *S), steps=2, lengths=[1, 2, 1]), ValueError,
        "lengths is given, expected None: a forecast has `steps` steps of every sequence"),
    "a forecast of another rank": (lambda: module()(None, pair(1, H, 5), steps=2), RuntimeError,
        "h0 has shape (1, 3, 5), expected 4 or 5 "
        "dimensions: (layers, hidden channels, H, W) unbatched, or (layers, batch, hidden channels, H, W)"),
    "a forecast of another dtype": (lambda: module()(None, [s.double() for s in pair(1, B, H, *S)], steps=1), RuntimeError,
        "h0 has dtype torch.float64, expected torch.float32: the dtype of input and weights"),
    "a forecast of another image": (lambda: module(peephole="hadamard", spatial_size=S)(None, pair(1, B, H, 5, 5), steps=1),
        RuntimeError,
        "h0 has an image of (5, 5), expected (4, 5), that of spatial_size"),
    "a cell's state": (lambda: cell()(maps(B, C, *S), pair(B, H, 4, 4)), RuntimeError,
        "h0 has shape (3, 3, 4, 4), expected (3, 3, 4, 5): batch, hidden channels and the image of the output"),
    "a cell's unbatched state": (lambda: cell()(maps(C, *S), pair(1, H, *S)), RuntimeError,
        "h0 has shape (1, 3, 4, 5), expected (3, 4, 5): hidden channels and"),
    "a cell's input of a sequence": (lambda: cell()(x()), ValueError, "ConvLSTM2dCell: Expected input to be 3D or 4D, got 5D "
        "instead: (C, H, W) unbatched, or (B, C, H, W)"),
    "a cell's channels": (lambda: cell()(maps(B, *S, C)), RuntimeError,
        "input has 4 channels in its shape (3, 4, 5, 2), expected"),
    "a cell without input": (lambda: cell()(None), TypeError, "input is of type NoneType, expected a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("run", "kind", "said"), CALLS.values(), ids=CALLS)
def test_bad_calls(run, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        run()


def weights(n: int = 2, **changed) -> list[tuple[Tensor, ...]]:
    """One layer's, with biases and peepholes."""
    shapes = {
        "w_ih": (12, 2, 3, 3), "w_hh": (12, 3, 3, 3), "b_ih": (12,), "b_hh": (12,), "w_peephole": (3, 3, 1, 1)
    } | changed  # fmt: skip
    return [tuple(maps(*shape) for shape in shapes.values())]


WEIGHTS = {
    "none": (list, "weights has 0 entries, expected a multiple of 1: one per layer and direction"),
    "too few": (lambda: [weights()[0][:1]], "weights[0] has 1 tensors, expected 2 to 5: w_ih, w_hh, b_ih, b_hh, w_peephole"),
    "of no dimension": (lambda: [(maps(12, 2), maps(12, 3))],
        "w_ih of weights[0] has shape (12, 2), expected (rows, channels, *kernel)"),
    "of different dimensions": (lambda: weights(w_hh=(12, 3, 3)),
        "w_hh of weights[0] has shape (12, 3, 3), expected 4 dimensions"),
    "an empty kernel": (lambda: weights(w_hh=(12, 3, 0, 3)),
        "w_hh of weights[0] has shape (12, 3, 0, 3), expected 4 dimensions"),
    "rows": (lambda: weights(w_ih=(9, 2, 3, 3)),
        "w_ih of weights[0] has shape (9, 2, 3, 3), expected (12, 2, 3, 3): 4 gates, 2 input "
        "channels and 3 hidden channels of its layer"),
    "a bias": (lambda: weights(b_hh=(3,)), "b_hh of weights[0] has shape (3,), expected (12,)"),
    "peepholes": (lambda: weights(w_peephole=(2, 3, 1, 1)),
        "w_peephole of weights[0] has shape (2, 3, 1, 1), expected (3, 3, 1, 1) or "
        "(3, 3, H, W): 3 gates that see the cell and 3 hidden channels"),
    "peepholes of half an image": (lambda: weights(w_peephole=(3, 3, 4, 1)), "has an image of (4, 1), expected (4, 5)"),
    "not as many": (lambda: [*weights(), weights()[0][:4]], "weights[1] has 4 tensors, expected 5: as many as weights[0]"),
    "of the layer below": (lambda: [*weights(), *weights()],
        "w_ih of weights[1] has shape (12, 2, 3, 3), expected (12, 3, 3, 3)"),
    "another dtype": (lambda: [(*weights()[0][:4], random(3, 3, 1, 1))],
        "w_peephole of weights[0] is torch.float64 on cpu, expected "
        "torch.float32 on cpu: all weights are alike"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_weights(make, said):
    with pytest.raises((ValueError, RuntimeError), match=re.escape(said)):
        conv_lstm(x(), make())


NO_WEIGHTS = {
    "None": (None, "weights is of type NoneType, expected a list: an entry per layer and direction"),
    "an entry": ([None], "weights[0] is of type NoneType, expected a tuple of Tensors: w_ih, w_hh"),
    "a weight": (
        [(*weights()[0][:2], None, None)],
        "weights[0][2] is of type NoneType, expected a Tensor: what a layer lacks",
    ),
}


@pytest.mark.parametrize(("given", "said"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_what_are_no_weights(given, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        conv_lstm(x(), given)


def test_directions_are_of_one_size():
    forward, other = (maps(12, 2, 3), maps(12, 3, 3)), (maps(16, 2, 3), maps(16, 4, 3))
    with pytest.raises(ValueError, match=re.escape("w_ih of weights[1] has shape (16, 2, 3), expected (12, 2, 3)")):
        conv_lstm(maps(T, B, C, 4), [forward, other], bidirectional=True)
    with pytest.raises(
        ValueError, match="weights has 1 entries, expected a multiple of 2: one per layer and direction"
    ):
        conv_lstm(maps(T, B, C, 4), [forward], bidirectional=True)


def test_a_backend_that_cannot_run_says_so():
    with pytest.raises(
        RuntimeError, match="backend 'triton' can't run peephole_conv_lstm here: its kernels run on CUDA GPUs"
    ):
        module(peephole="channel", backend="triton")(x())


@pytest.mark.parametrize("wrong", [True, 1.0, (True, 1), (1.0, 1)], ids=str)
def test_what_was_right_before_lets_no_equal_pass(wrong):
    """1 == True == 1.0, also to what remembers the options of a call."""
    conv_lstm(x(), weights(), stride=1)
    conv_lstm(x(), weights(), stride=(1, 1))
    with pytest.raises(ValueError, match=re.escape(f"stride is {wrong!r}, expected an int or a tuple of 2")):
        conv_lstm(x(), weights(), stride=wrong)
