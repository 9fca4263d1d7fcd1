"""From other decoders with attention: each function returns the whole `state_dict` of a `fastlstm.AttentionLSTM`.

Its docstring says which options that module takes. The initial state is given by the caller, as theirs make it in ways of their
own; so are embeddings and the layer that predicts, whose weights are passed over. Where a framework has fewer biases than ours,
those that it lacks are zeros. Dropout is in other places in some of them: in `eval()` all give the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm.loaders.layer import Weights, check_shape, layer_of, shape_of, tensor_of, tensors_of
from fastlstm.loaders.tensorflow import from_tensorflow

PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def from_joeynmt(weights: Mapping[str, Any]) -> Weights:
    """Weights of JoeyNMT's `RecurrentDecoder` of `rnn_type="lstm"`, whose default is a GRU.

    weights: the `state_dict` of `model.decoder`. Its output and bridge layers are passed over.

    Ours has attention="additive" for their "bahdanau" and "general" for "luong", output="tanh", the default, for their default
    activation, and feed="attentional" for `input_feeding: True`, their default, else None. Memory and input are batch first
    there. `dropout` between layers is ours; their `hidden_dropout` falls on [h, context] before `weight_out`, where ours,
    `output_dropout`, falls on what comes of it, and their `emb_dropout` on the input with what is fed back.

    >>> rnn = {f"rnn.{name}_l0": w for name, w in zip(PARTS, (torch.ones(20, 3 + 5), torch.ones(20, 5), *torch.ones(2, 20)))}
    >>> attention = {"attention.key_layer.weight": torch.ones(5, 4)}
    >>> out = {"att_vector_layer.weight": torch.ones(5, 5 + 4), "att_vector_layer.bias": torch.ones(5)}
    >>> [name for name in from_joeynmt(rnn | attention | out) if not name.endswith("_l0")]
    ['weight_key', 'weight_out', 'bias_out']

    Source: https://joeynmt.readthedocs.io, joeynmt.decoders.RecurrentDecoder
    """
    found, H, rest = _layers(weights, "rnn.{part}_l{k}", ("output_layer.", "bridge_layer."), "JoeyNMT")
    key, query, energy = (f"attention.{name}_layer.weight" for name in ("key", "query", "energy"))
    out, out_bias = "att_vector_layer.weight", "att_vector_layer.bias"
    additive = query in rest or energy in rest
    tensors = _taken(rest, [key, *([query, energy] if additive else []), out, out_bias])
    _, M = _matrix(key, tensors[key], "(H, M)")
    check_shape(key, tensors[key], (H, M), "the hidden size, and M")
    if additive:
        check_shape(query, tensors[query], (H, H), "the hidden size")
        check_shape(energy, tensors[energy], (1, H), "the hidden size")
        found |= {"weight_query": tensors[query], "weight_key": tensors[key], "weight_score": tensors[energy][0]}
    else:
        found["weight_key"] = tensors[key]
    check_shape(out_bias, tensors[out_bias], (H,), "the hidden size")
    return _copied(found | _output(out, tensors[out], tensors[out_bias], H, M, h_first=True))


def from_fairseq(weights: Mapping[str, Any]) -> Weights:
    """Weights of fairseq's `LSTMDecoder` with attention, as the architectures "lstm" and those named after it have it.

    weights: the `state_dict` of `model.decoder`. Embeddings, and what maps the first state or the output, are passed over.

    Ours has attention="general", output="tanh" and feed="attentional", the last two by default. Their dropout_out is both
    our `dropout`, between layers, and our `output_dropout`. Layers with residuals have no counterpart here; weights don't show
    them.

    Source: https://github.com/facebookresearch/fairseq, fairseq/models/lstm.py
    """
    unused = (
        "embed_tokens.", "encoder_hidden_proj.", "encoder_cell_proj.", "additional_fc.", "adaptive_softmax.", "fc_out.",
    )  # fmt: skip
    found, H, rest = _layers(weights, "layers.{k}.{part}", unused, "fairseq")
    key, out = "attention.input_proj.weight", "attention.output_proj.weight"
    tensors = _taken(rest, [key, out])
    M, _ = _matrix(key, tensors[key], "(M, H)")
    check_shape(key, tensors[key], (M, H), "(M, H), with the hidden size of layers")
    found["weight_key"] = tensors[key].T
    return _copied(found | _output(out, tensors[out], None, H, M))


def from_opennmt(weights: Mapping[str, Any]) -> Weights:
    """Weights of OpenNMT-py's `InputFeedRNNDecoder` of `rnn_type` "LSTM".

    weights: the `state_dict` of `model.decoder`. Embeddings and an attention for copying are passed over; coverage and a
        context gate have no counterpart here and raise.

    Ours has attention="dot" or "general" as theirs, with output="tanh", the default. For their "mlp" it is
    "normalized_additive" with output="linear": that has the query's bias, and the length of weight_score becomes the gain.
    feed is "attentional", the default. Their dropout is both our `dropout`, between layers, and our `output_dropout`. Their
    sparsemax has no counterpart here; weights don't show it.

    Source: https://opennmt.net/OpenNMT-py/onmt.html, onmt.modules.GlobalAttention
    """
    found, H, rest = _layers(weights, "rnn.layers.{k}.{part}", ("embeddings.", "copy_attn."), "OpenNMT")
    general, out, out_bias = "attn.linear_in.weight", "attn.linear_out.weight", "attn.linear_out.bias"
    mlp = [f"attn.{name}" for name in ("linear_query.weight", "linear_query.bias", "linear_context.weight", "v.weight")]
    if any(name in rest for name in mlp):
        tensors = _taken(rest, [*mlp, out, out_bias])
        for name, shape in zip([*mlp, out_bias], ((H, H), (H,), (H, H), (1, H), (H,)), strict=True):
            check_shape(name, tensors[name], shape, "the hidden size")
        query, bias, key, score = (tensors[name] for name in mlp)
        found |= {"weight_query": query, "weight_key": key, "weight_score": score[0]}
        found |= {"gain_score": score[0].norm(), "bias_score": bias}
    elif general in rest:
        tensors = _taken(rest, [general, out])
        check_shape(general, tensors[general], (H, H), "the hidden size")
        found["weight_key"] = tensors[general].T
    else:
        tensors = _taken(rest, [out])
    return _copied(found | _output(out, tensors[out], tensors.get(out_bias), H, H))


def from_tensorflow_attention(
    cells: Sequence[Sequence[Any]],
    memory_kernel: Any,
    query_kernel: Any = None,
    attention_v: Any = None,
    attention_g: Any = None,
    attention_b: Any = None,
    attention_kernel: Any = None,
    *,
    forget_bias: float = 1.0,
) -> Weights:
    """Weights of TensorFlow's `AttentionWrapper` (tf.contrib.seq2seq, tfa.seq2seq) over LSTM cells.

    cells: of each layer its kernel and bias, and its three peepholes if it has them: the arguments of `from_tensorflow`.
    memory_kernel (M, A): the variable memory_layer/kernel.
    query_kernel (H, A), attention_v (A): query_layer/kernel and attention_v of `BahdanauAttention`, with attention_g () and
        attention_b (A) where it has normalize=True. A `LuongAttention` has neither kernel nor v, A is H, and attention_g ()
        where it has scale=True: that becomes part of weight_key.
    attention_kernel (H + M, H): attention_layer/kernel, as wide as the cell's h; None where attention_layer_size is.
    forget_bias: what the cells add to f when they run; here it becomes part of the bias.

    Ours has attention="additive", "normalized_additive", or for Luong's "general". With an attention_kernel it has
    output="linear" and feed="attentional"; without, feed="context" and output="hidden", which the wrapper gives where
    output_attention is False. A `DropoutWrapper` drops the output of each cell: of all but the last it is our `dropout`.

    Source: https://www.tensorflow.org/addons/api_docs/python/tfa/seq2seq/AttentionWrapper
    """
    found: Weights = {}
    each = "(kernel, bias), or these and three peepholes"
    if not isinstance(cells, Sequence) or isinstance(cells, str):
        raise TypeError(f"cells is of type {type(cells).__name__}, expected a list: of each layer {each}")
    for k, cell in enumerate(cells):
        if not isinstance(cell, Sequence) or isinstance(cell, str):
            raise TypeError(f"cells[{k}] is of type {type(cell).__name__}, expected a tuple: {each}")
        if len(cell) < 2:
            raise ValueError(f"cells[{k}] has {len(cell)} entries, expected 2 or 5: {each}")
        kernel, bias, *peepholes = cell
        found |= from_tensorflow(kernel, bias, *([peepholes] if peepholes else []), forget_bias=forget_bias, layer=k)
    if not found:
        raise ValueError("cells is empty, expected the kernel and the bias of at least one layer")
    H = found["weight_hh_l0"].shape[1]
    key, query, v, g, b = tensors_of(
        memory_kernel=memory_kernel,
        query_kernel=query_kernel,
        attention_v=attention_v,
        attention_g=attention_g,
        attention_b=attention_b,
    )
    if key is None or key.dim() != 2:
        raise ValueError(f"memory_kernel has shape {shape_of(memory_kernel)}, expected (M, A)")
    M, A = key.shape
    if (query is None) != (v is None):
        raise ValueError(
            "query_kernel and attention_v have to come together: Bahdanau's score has both, Luong's neither"
        )
    check_shape("attention_g", g, (), "one number")
    if query is None or v is None:
        if b is not None:
            raise ValueError("attention_b is given, expected None: only Bahdanau's score has one, and a query_kernel")
        check_shape("memory_kernel", key, (M, H), "its products with h are taken, where there is no query_kernel")
        found["weight_key"] = key.T if g is None else g * key.T
    else:
        if (g is None) != (b is None):
            raise ValueError("attention_g and attention_b have to come together: a normalized score has both")
        check_shape("query_kernel", query, (H, A), "the cell's hidden size and the columns of memory_kernel")
        check_shape("attention_v", v, (A,), "the columns of memory_kernel")
        check_shape("attention_b", b, (A,), "the columns of memory_kernel")
        found |= {"weight_query": query.T, "weight_key": key.T, "weight_score": v}
        if g is not None and b is not None:
            found |= {"gain_score": g, "bias_score": b}
    if attention_kernel is not None:
        w_out = tensor_of("attention_kernel", attention_kernel)
        check_shape("attention_kernel", w_out, (H + M, H), "[h, context] to what is as wide as h")
        found |= _output("attention_kernel", w_out.T, None, H, M, h_first=True)  # type: ignore[union-attr]
    return _copied(found)


def _layers(
    weights: Mapping[str, Any], names: str, unused: tuple[str, ...], who: str
) -> tuple[Weights, int, dict[str, Any]]:
    """The recurrent layers by our names, H, and all other weights that are not `unused`, which are those names' beginnings."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights is of type {type(weights).__name__}, expected a mapping: the state_dict of a decoder")
    rest = {name: weight for name, weight in weights.items() if not name.startswith(unused)}
    found: Weights = {}
    k = 0
    while k == 0 or names.format(part=PARTS[0], k=k) in rest:
        tensors = _taken(rest, [names.format(part=part, k=k) for part in PARTS], alone=False)
        w_ih, w_hh, b_ih, b_hh = tensors.values()
        if w_hh.dim() == 2 and w_hh.shape[0] == 3 * w_hh.shape[1]:
            raise ValueError(f"weights has {next(iter(tensors))!r} of 3 gates, expected 4: {who}'s decoder is a GRU")
        found |= layer_of("ifgo", "ifgo", w_ih, w_hh, b_ih, b_hh, None, None, layer=k, reverse=False)
        rest = {name: weight for name, weight in rest.items() if name not in tensors}
        k += 1
    return found, found["weight_hh_l0"].shape[1], rest


def _taken(weights: Mapping[str, Any], names: list[str], alone: bool = True) -> Weights:
    """The tensors of these names, all of them; alone: there are no others."""
    if lacking := [name for name in names if weights.get(name) is None]:
        raise ValueError(f"weights lacks {lacking}, expected all of {names}")
    if alone and (others := sorted(weights.keys() - set(names))):
        raise ValueError(f"weights has {others[0]!r}, expected {names} beside the layers: ours has nothing for it")
    return {name: torch.as_tensor(tensor_of(name, weights[name])) for name in names}


def _matrix(name: str, weight: Tensor, expected: str) -> torch.Size:
    """Its shape."""
    if weight.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(weight.shape)}, expected {expected}")
    return weight.shape


def _output(name: str, weight: Tensor, bias: Tensor | None, H: int, M: int, h_first: bool = False) -> Weights:
    """weight_out (H, M + H) of [context, h], from that or from one of [h, context]."""
    check_shape(name, weight, (H, H + M), "the hidden size, and M and that together")
    if h_first:
        weight = weight.roll(M, dims=1)
    return {"weight_out": weight, "bias_out": weight.new_zeros(H) if bias is None else bias}


def _copied(weights: Weights) -> Weights:
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}
