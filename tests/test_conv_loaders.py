"""ConvLSTM weights of others give their results here: of Keras, of the package conv-lstm, and by the others' formulas."""

import doctest
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import conv_lstm
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import loaders

T, B, C, H = 3, 2, 3, 4
IMAGES = {1: (5,), 2: (4, 5), 3: (2, 4, 3)}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) / 2


def make(space: int, *sizes: Any, **options: Any) -> nn.Module:
    return getattr(fastlstm, f"ConvLSTM{space}d")(*sizes, dtype=torch.float64, **options)


def check(module: nn.Module, weights: dict[str, Tensor], x: Tensor, expected: Tensor) -> None:
    module.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-12)


def convolve(x: Tensor, w: Tensor) -> Tensor:
    """A "same" convolution."""
    return getattr(nn.functional, f"conv{w.dim() - 2}d")(x, w, padding="same")


def by_letters(
    order: str,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor,
    peepholes: dict[str, Tensor],
    forget_bias: float = 0.0,
) -> Tensor:
    """Shi's equations for gates in any order; i or f may be the complement of the other."""
    h = x.new_zeros(B, w_hh.shape[1], *x.shape[3:])
    c, y = h, []
    for x_t in x:
        sums = convolve(torch.cat([x_t, h], 1), torch.cat([w_ih, w_hh], 1)) + bias.view(-1, *[1] * (x.dim() - 3))
        a = dict(zip(order, sums.chunk(len(order), 1), strict=True))

        def gate(name: str, c: Tensor) -> Tensor:
            return torch.sigmoid(a[name] + peepholes.get(name, 0) * c + forget_bias * (name == "f"))  # noqa: B023

        i = gate("i", c) if "i" in a else 1 - gate("f", c)
        f = gate("f", c) if "f" in a else 1 - gate("i", c)
        c = f * c + i * a["g"].tanh()
        h = gate("o", c) * c.tanh()
        y.append(h)
    return torch.stack(y)


PEEPHOLES: tuple[str | None, ...] = (None, "channel", "hadamard")
ORDERS = ("ifgo", "ifog", "igfo", "fiog", "igo", "fgo", "gof")


@pytest.mark.parametrize(("order", "peephole"), list(product(ORDERS, PEEPHOLES)))
def test_from_conv_cat(order: str, peephole: str | None) -> None:
    for space, S in IMAGES.items():
        k = (3, 1, 3)[:space]
        G = len(order)
        weight, bias, x = draw(G * H, C + H, *k), draw(G * H), draw(T, B, C, *S)
        p = draw(G - 1, H, *(S if peephole == "hadamard" else [1] * space)) if peephole else None
        forget_bias = 1.0 if "f" in order else 0.0
        peepholes = {} if p is None else dict(zip(order.replace("g", ""), p, strict=True))
        y = by_letters(order, x, weight[:, :C], weight[:, C:], bias, peepholes, forget_bias)
        module = make(
            space, C, H, k, coupled=G == 3, peephole=peephole, spatial_size=S if peephole == "hadamard" else None
        )
        check(module, loaders.from_conv_cat(order, weight, bias, C, p, forget_bias=forget_bias), x, y)


@pytest.mark.parametrize("biases", [0, 1, 2])
def test_from_conv_pair(biases: int) -> None:
    w_ih, w_hh, bs, x = draw(4 * H, C, 3, 3), draw(4 * H, H, 3, 3), draw(2, 4 * H)[:biases], draw(T, B, C, 4, 5)
    y = by_letters("igfo", x, w_ih, w_hh, bs.sum(0), {}, 1.0 if biases else 0.0)
    weights = loaders.from_conv_pair("igfo", w_ih, w_hh, *bs, forget_bias=1.0 if biases else 0.0)
    check(make(2, C, H, 3, bias=biases > 0), weights, x, y)


def test_a_forget_bias_needs_no_other_bias() -> None:
    w_ih, w_hh, x = draw(4 * H, C, 3), draw(4 * H, H, 3), draw(T, B, C, 5)
    y = by_letters("ofig", x, w_ih, w_hh, torch.zeros(4 * H), {}, 1.5)
    check(make(1, C, H, 3), loaders.from_conv_pair("ofig", w_ih, w_hh, forget_bias=1.5), x, y)


class OpenSTLCell(nn.Module):
    """As the cell of OpenSTL without norms: two convolutions, each in a Sequential, and two that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_x = nn.Sequential(nn.Conv2d(C, 4 * H, 5, padding=2, bias=False))
        self.conv_h = nn.Sequential(nn.Conv2d(H, 4 * H, 5, padding=2, bias=False))
        self.conv_o = nn.Sequential(nn.Conv2d(2 * H, H, 5, padding=2, bias=False))
        self.conv_last = nn.Conv2d(2 * H, H, 1, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.conv_x(x) + self.conv_h(h)).split(H, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class EightCell(nn.Module):
    """As automan000's cell, with peepholes that are not zero."""

    def __init__(self, channels: int, S: tuple[int, ...] | None) -> None:
        super().__init__()
        for gate in "ifco":
            self.add_module(f"Wx{gate}", nn.Conv2d(channels, H, 3, padding=1))
            self.add_module(f"Wh{gate}", nn.Conv2d(H, H, 3, padding=1, bias=False))
        for gate in "ifo":
            setattr(self, f"Wc{gate}", draw(1, H, *S) if S else 0.0)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i = (self.Wxi(x) + self.Whi(h) + self.Wci * c).sigmoid()
        f = (self.Wxf(x) + self.Whf(h) + self.Wcf * c).sigmoid()
        c = f * c + i * (self.Wxc(x) + self.Whc(h)).tanh()
        return (self.Wxo(x) + self.Who(h) + self.Wco * c).sigmoid() * c.tanh(), c


def run(cell: nn.Module, x: Tensor) -> Tensor:
    h = c = x.new_zeros(B, H, *x.shape[3:])
    y = []
    with torch.no_grad():
        for x_t in x:
            h, c = cell(x_t, h, c)
            y.append(h)
    return torch.stack(y)


def test_a_cell_of_openstl() -> None:
    cell, x = OpenSTLCell().double(), draw(T, B, C, 4, 5)
    weights = loaders.from_conv_pair("ifgo", cell.conv_x[0].weight, cell.conv_h[0].weight)
    check(make(2, C, H, 5, bias=False), weights, x, run(cell, x))


@pytest.mark.parametrize("peephole", [None, "hadamard"])
def test_from_conv_eight(peephole: str | None) -> None:
    S = (4, 5) if peephole else None
    cells = [EightCell(channels, S).double() for channels in (C, H)]
    x, weights = draw(T, B, C, 4, 5), {}
    for layer, cell in enumerate(cells):
        p = {f"Wc{gate}": getattr(cell, f"Wc{gate}") for gate in "ifo"} if peephole else {}
        weights |= loaders.from_conv_eight(cell.state_dict() | p, layer=layer)
    check(make(2, C, H, 3, 2, peephole=peephole, spatial_size=S), weights, x, run(cells[1], run(cells[0], x)))


def test_the_package_conv_lstm() -> None:
    theirs = conv_lstm.ConvLSTM(C, [H, 5], [3, 5], num_layers=2, batch_first=False).double()
    x, weights = draw(T, B, C, 4, 6), {}
    for layer, cell in enumerate(theirs.cell_list):
        weights |= loaders.from_conv_cat("ifog", cell.conv.weight, cell.conv.bias, cell.input_dim, layer=layer)
    with torch.no_grad():
        ((y,), _) = theirs(x)
    check(make(2, C, [H, 5], [3, 5], 2), weights, x, y.transpose(0, 1))


# name: spatial dimensions, the image, and what Keras's layer gets
KERAS: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    f"{space}d": (space, S, {"kernel_size": 3, "padding": "same"}) for space, S in IMAGES.items()
}
KERAS |= {
    f"{space}d strided, {'odd' if odd else 'even'}, k={k}": (
        space, tuple(size + odd for size in (6, 8, 4)[:space]), {"kernel_size": k, "padding": "same", "strides": 2},
    ) for space, odd, k in product((1, 2, 3), (0, 1), (2, 3))
}  # fmt: skip
KERAS |= {
    "strides of 3": (2, (7, 11), {"kernel_size": (5, 2), "padding": "same", "strides": (3, 1)}),
    "a stride beyond the kernel": (1, (9,), {"kernel_size": 2, "padding": "same", "strides": 4}),
    "valid": (2, (6, 7), {"kernel_size": 3}),
    "valid, strided": (2, (6, 7), {"kernel_size": (3, 4), "strides": (2, 1)}),
    "dilated": (2, (6, 7), {"kernel_size": 3, "padding": "same", "dilation_rate": 2}),
    "even kernels": (3, (4, 5, 3), {"kernel_size": (2, 4, 1), "padding": "same"}),
    "no bias": (2, (4, 5), {"kernel_size": 3, "padding": "same", "use_bias": False}),
    "channels first": (2, (4, 5), {"kernel_size": 3, "padding": "same", "data_format": "channels_first"}),
}
# Keras reads its backend when it is imported, and nothing else here needs it
RUN_KERAS = f"""
import json, sys
import keras, numpy as np

random, found = np.random.default_rng(0), {{}}
for name, (space, S, options) in json.loads(sys.argv[1]).items():
    layer = getattr(keras.layers, f"ConvLSTM{{space}}D")({H}, return_sequences=True, dtype="float64", **options)
    pixel = ({C}, *S) if options.get("data_format") == "channels_first" else (*S, {C})
    x = random.standard_normal(({B}, {T}, *pixel))
    layer.build(x.shape)
    layer.set_weights([random.standard_normal(w.shape) / 2 for w in layer.weights])
    found |= {{f"{{name}} {{n}}": w for n, w in enumerate(layer.get_weights())}}
    found |= {{name + " x": x, name + " y": keras.ops.convert_to_numpy(layer(x))}}
np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="module")
def kerases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keras's inputs `{name} x`, weights `{name} 0` and so on, and results `{name} y`."""
    folder = tmp_path_factory.mktemp("keras")
    path: Path = folder / "found.npz"
    environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu", "KERAS_HOME": str(folder)}
    subprocess.run([sys.executable, "-c", RUN_KERAS, json.dumps(KERAS), str(path)], env=environment, check=True)
    with np.load(path) as found:
        yield found


def as_keras_pads(S: tuple[int, ...], k: tuple[int, ...], stride: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Of `padding="same"`, as the docstring of `from_keras` has it."""
    n = [max(0, (math.ceil(S / s) - 1) * s + k - S) for S, k, s in zip(S, k, stride, strict=True)]
    return tuple((n // 2, n - n // 2) for n in n)


@pytest.mark.parametrize("case", KERAS)
def test_from_keras(case: str, kerases: Any) -> None:
    space, S, options = KERAS[case]
    k, stride = (
        (value,) * space if isinstance(value, int) else value
        for value in (options["kernel_size"], options.get("strides", 1))
    )
    padding: Any = options.get("padding", "valid")
    if padding == "same" and max(stride) > 1:
        padding = as_keras_pads(S, k, stride)
    given = [kerases[f"{case} {n}"] for n in range(3) if f"{case} {n}" in kerases]
    x, y = (torch.from_numpy(kerases[f"{case} {name}"]) for name in "xy")
    if options.get("data_format") != "channels_first":
        x, y = x.movedim(-1, 2), y.movedim(-1, 2)
    module = make(
        space, C, H, k, bias=options.get("use_bias", True), batch_first=True, stride=stride,
        dilation=options.get("dilation_rate", 1), padding=padding,
    )  # fmt: skip
    check(module, loaders.from_keras(*given), x, y)


def test_keras_pads_by_the_size_of_the_image() -> None:
    assert as_keras_pads((5, 6), (3, 3), (2, 2)) == ((1, 1), (0, 1))


def test_names_of_layers_directions_and_cells() -> None:
    given = draw(4 * H, C + H, 3), draw(4 * H), C
    weights = {}
    for layer, reverse in product((0, 1), (False, True)):
        channels = 2 * H if layer else C
        weight = draw(4 * H, channels + H, 3)
        weights |= loaders.from_conv_cat("ifog", weight, given[1], channels, layer=layer, reverse=reverse)
    assert weights.keys() == make(1, C, H, 3, 2, bidirectional=True).state_dict().keys()
    cell = fastlstm.ConvLSTM1dCell(C, H, 3, dtype=torch.float64)
    cell.load_state_dict(loaders.from_conv_cat("ifog", *given, layer=None))


def test_weights_are_copies() -> None:
    given = [draw(4 * H, C + H, 3).requires_grad_(), draw(4 * H)]
    before = [w.detach().clone() for w in given]
    for weight in loaders.from_conv_cat("ifgo", *given, C, forget_bias=1.0).values():
        assert not weight.requires_grad
        weight.zero_()
    assert all(w.equal(b) for w, b in zip(given, before, strict=True))


W, U, P = torch.zeros(20, 3, 3, 3), torch.zeros(20, 5, 3, 3), torch.zeros(3, 5, 1, 1)
WU, KERNELS = torch.cat([W, U], 1), (torch.zeros(3, 3, 3, 20), torch.zeros(3, 3, 5, 20))
EIGHT = {f"W{of}{gate}.weight": draw(H, C if of == "x" else H, 3, 3) for of in "xh" for gate in "ifco"}
cat, pair, eight, keras = loaders.from_conv_cat, loaders.from_conv_pair, loaders.from_conv_eight, loaders.from_keras
ERRORS = {
    "letters": (lambda: pair("rzn", W, U), "order is 'rzn', expected the letters of 'ifgo', 'igo' or 'fgo', each once"),
    "letters of cat": (lambda: cat("ifo", WU, None, 3), "order is 'ifo', expected the letters of 'ifgo'"),
    "no letters": (lambda: cat(None, WU, None, 3), "order is None, expected the letters of 'ifgo', 'igo' or 'fgo', each once"),
    "no dimension": (lambda: cat("ifgo", WU[..., 0, 0], None, 3), r"weight has shape \(20, 8\), expected \(4 \* H, in_ch"),
    "rows of cat": (lambda: cat("igo", WU, None, 3), r"weight has shape \(20, 8, 3, 3\), expected \(3 \* H, in_channels \+ H"),
    "in_channels": (lambda: cat("ifgo", WU, None, 4), r"expected \(20, 9, 3, 3\): 4 in_channels and 5 of the state"),
    "no channels": (lambda: cat("ifgo", WU, None, 0), "in_channels is 0, expected at least 1"),
    "layer": (lambda: cat("ifgo", WU, None, 3, layer=-1), "layer is -1, expected the number of a layer, from 0, or None for a"),
    "rows": (lambda: pair("igo", W, U), r"shapes \(20, 3, 3, 3\) and \(20, 5, 3, 3\), expected \(3 \* H, C, \*k\) and \(3 "),
    "dimensions": (lambda: pair("ifgo", W[..., 0], U), r"shapes \(20, 3, 3\) and \(20, 5, 3, 3\), expected \(4 \* H, C, \*k"),
    "too many": (lambda: pair("ifgo", W[..., None, None], U[..., None, None]), r"expected \(4 \* H, C, \*k\)"),
    "kernel": (lambda: pair("ifgo", W[..., 1:], U), r"w_ih has shape \(20, 3, 3, 2\), expected \(20, 3, 3, 3\): the kernel of"),
    "w_hh": (lambda: pair("ifgo", W, U[:, 1:]), r"w_hh has shape \(20, 4, 3, 3\), expected \(20, 5, 3, 3\): the hidden size"),
    "bias": (lambda: cat("ifgo", WU, W[:5, 0, 0, 0], 3), r"b_ih has shape \(5,\), expected \(20,\): the rows of w_hh"),
    "peephole": (lambda: cat("ifgo", WU, None, 3, P[:2]), r"w_peephole has shape \(2, 5, 1, 1\), expected \(3, 5, 1, 1\): a"),
    "2-d peephole": (lambda: cat("ifgo", WU, None, 3, P[..., 0, 0]), r"w_peephole has shape \(3, 5\), expected \(3, 5, 1, 1\)"),
    "norm": (lambda: cat("ifgo", WU, None, 3, norm=True), "norm is True, expected False: our gates are not normalised"),
    "norm of pair": (lambda: pair("ifgo", W, U, norm=True), "norm is True, expected False: our gates are not normalised"),
    "no forget_bias": (lambda: pair("igfo", W, U, forget_bias=float("nan")), "forget_bias is nan, expected a finite number"),
    "forget_bias": (lambda: pair("igo", W[:15], U[:15], forget_bias=1.0), "forget_bias is 1.0, expected 0.0: 'igo' has no f"),
    "unknown": (lambda: eight(EIGHT | {"norm.weight": P}), "weights has 'norm.weight', expected names as in a ConvLSTM of"),
    "lacking": (lambda: eight({k: w for k, w in EIGHT.items() if "hf" not in k}), r"weights lacks \['Whf.weight'\], expected"),
    "a bias": (lambda: eight(EIGHT | {"Wxi.bias": P[0, 0]}), r"weights lacks \['Wxf.bias', 'Wxc.bias', 'Wxo.bias'\]"),
    "one of eight": (lambda: eight(EIGHT | {"Wxo.weight": W}), r"Wxo.weight has shape \(20, 3, 3, 3\), expected \(4, 3, 3, 3"),
    "keras": (lambda: keras(KERNELS[0][0], KERNELS[1]), r"shapes \(3, 3, 20\) and \(3, 3, 5, 20\), expected .*, or \(\*k, C,"),
    "keras, rows": (lambda: keras(KERNELS[0][..., 5:], KERNELS[1][..., 5:]), r"has shape \(3, 3, 5, 15\), expected .* a Conv"),
    "keras, kernel": (lambda: keras(KERNELS[0][1:], KERNELS[1]), r"w_ih has shape \(20, 3, 2, 3\), expected \(20, 3, 3, 3\)"),
    "keras, bias": (lambda: keras(*KERNELS, P[0]), r"bias has shape \(5, 1, 1\), expected \(20,\): one for each column"),
}  # fmt: skip


TYPES = {
    "a bool": (lambda: cat("ifgo", WU, None, True), "in_channels should be of type int, got: bool"),
    "a float": (lambda: cat("ifgo", WU, None, 3.0), "in_channels should be of type int, got: float"),
    "words": (
        lambda: cat("ifgo", WU, None, 3, forget_bias="1"),
        "forget_bias is '1', expected a number: it is added to",
    ),
    "a list": (lambda: eight([1]), "weights is of type list, expected a mapping: the state_dict of a cell"),
}


@pytest.mark.parametrize("case", TYPES)
def test_types(case: str) -> None:
    call, message = TYPES[case]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_examples_of_the_docstrings() -> None:
    results = doctest.testmod(loaders.conv)
    assert results.failed == 0
    assert results.attempted > 0
