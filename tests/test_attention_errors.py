"""What is said of bad arguments of the Attention LSTM: the name, what is expected, what is there, and why."""

import re

import pytest
import torch
from attention_cases import H, I, M, S, T
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm.functional import AttentionWeights, attention_lstm

B = 6  # no other size


def module(**options) -> nn.Module:
    sizes = {"input_size": I, "hidden_size": H, "memory_size": M} | options
    return fastlstm.AttentionLSTM(**sizes)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def x() -> Tensor:
    return zeros(T, B, I)


def memory() -> Tensor:
    return zeros(S, B, M)


def state() -> list[Tensor]:
    return [zeros(1, B, H), zeros(1, B, H), zeros(B, H)]


CONSTRUCTORS: list[tuple[dict, type[Exception], str]] = [
    ({"input_size": 0}, ValueError, "input_size is 0, expected at least 1"),
    ({"hidden_size": 2.0}, TypeError, "hidden_size should be of type int, got: float"),
    ({"memory_size": True}, TypeError, "memory_size should be of type int, got: bool"),
    ({"num_layers": 0}, ValueError, "num_layers is 0, expected at least 1"),
    ({"attention_size": -1}, ValueError, "attention_size is -1, expected at least 1"),
    ({"attention_size": "7"}, TypeError, "attention_size should be of type int, got: str"),
    ({"bias": 1}, TypeError, "bias should be of type bool, got: int"),
    ({"batch_first": None}, TypeError, "batch_first should be of type bool, got: NoneType"),
    ({"peephole": "channel"}, TypeError, "peephole should be of type bool, got: str"),
    ({"coupled": 0}, TypeError, "coupled should be of type bool, got: int"),
    ({"dropout": 2}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"dropout": 0.5j}, ValueError, "dropout should be a number in range [0, 1]"),
    ({"output_dropout": -0.5}, ValueError, "output_dropout should be a number in range [0, 1] representing the probability "
        "of an element being zeroed, got -0.5"),
    ({"dtype": torch.int64}, ValueError, "dtype is torch.int64, expected a floating-point one"),
    ({"backend": "cuda"}, ValueError, "backend is 'cuda', expected one of 'auto'"),
    ({"attention": "bahdanau"}, ValueError,
        "attention is 'bahdanau', expected one of 'additive', 'normalized_additive', 'dot', "
        "'scaled_dot', 'general'"),
    ({"feed": "input"}, ValueError, "feed is 'input', expected one of None, 'attentional', 'context'"),
    ({"feed": False}, ValueError, "feed is False, expected one of None"),
    ({"attend": "during"}, ValueError, "attend is 'during', expected one of 'after', 'before'"),
    ({"output": None}, ValueError, "output is None, expected one of 'tanh', 'linear', 'hidden'"),
    ({"query_layer": 1}, ValueError, "query_layer is 1, expected -1 to 0: an index of the 1 layers"),
    ({"query_layer": -3, "num_layers": 2}, ValueError, "query_layer is -3, expected -2 to 1: an index of the 2 layers"),
    ({"query_layer": True}, TypeError, "query_layer should be of type int, got: bool"),
    ({"attend": "before"}, ValueError, "feed is 'attentional', expected None where attend is 'before': the context joins the "
        "input of the same step"),
    ({"attend": "before", "feed": "context"}, ValueError, "feed is 'context', expected None where attend is 'before'"),
    ({"output": "hidden"}, ValueError,
        "feed is 'attentional', expected 'context' or None where output is 'hidden': there is no "
        "attentional vector to feed"),
    ({"output": "hidden", "feed": None}, ValueError,
        "output is 'hidden', expected 'tanh' or 'linear' where attend is 'after' and "
        "feed is None: nothing would use what is attended to"),
    ({"attention": "dot"}, ValueError, "memory_size is 4, expected 3, the hidden_size, where attention is 'dot': h and memory "
        "are multiplied as they are; 'general' takes any memory_size"),
    ({"attention": "scaled_dot"}, ValueError, "memory_size is 4, expected 3, the hidden_size, where attention is 'scaled_dot'"),
    ({"attention": "dot", "memory_size": H, "attention_size": H}, ValueError,
        "attention_size is 3, expected None where attention "
        "is 'dot': keys are as wide as h, hidden_size; only additive scores have a size of their own"),
    ({"attention": "general", "attention_size": 5}, ValueError,
        "attention_size is 5, expected None where attention is 'general'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "said"), CONSTRUCTORS, ids=[said for *_, said in CONSTRUCTORS])
def test_bad_constructors(options, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        module(**options)


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
        module(dropout=0.5)


def step(*changed, of: nn.Module | None = None):
    ours = of or module()
    arguments = {"input": zeros(B, I), "state": None} | dict(changed)
    if "precomputed" not in arguments:
        arguments["precomputed"] = ours.precompute(memory())
    return ours.step(**arguments)


def precomputed(**options):
    return module(**options).precompute(zeros(S, B, options.get("memory_size", M)))


def by_hand(**changed):
    return step(("precomputed", precomputed()._replace(**changed)))


# what is called; what is said
CALLS = {
    "no tensor": (lambda: module()([1.0], memory()), TypeError, "input is of type list, expected a Tensor"),
    "packed": (lambda: module()(pack_sequence([zeros(3, I)]), memory()), TypeError,
        "input is a PackedSequence, expected a Tensor: pad it, and pass lengths="),
    "a packed memory": (lambda: module()(x(), pack_sequence([zeros(3, M)])), TypeError,
        "memory is a PackedSequence, expected a Tensor: pad it, and pass memory_lengths="),
    "sparse": (lambda: module()(x().to_sparse(), memory()), RuntimeError,
        "input has layout torch.sparse_coo, expected torch.strided"),
    "of another rank": (lambda: module()(zeros(I), memory()), ValueError,
        "AttentionLSTM: Expected input to be 2D or 3D, got 1D instead"),
    "of another size": (lambda: module()(zeros(T, B, 5), memory()), RuntimeError,
        "input.size(-1) must be equal to input_size. Expected 2, got 5"),
    "of another dtype": (lambda: module()(x().double(), memory()), ValueError,
        "RNN input dtype (torch.float64) does not match weight dtype (torch.float32)"),
    "on another device": (lambda: module()(x().to("meta"), memory()), RuntimeError,
        "Input and parameter tensors are not at the same device"),
    "no steps": (lambda: module()(zeros(0, B, I), memory()), RuntimeError,
        "Expected sequence length to be larger than 0 in RNN"),
    "no memory": (lambda: module()(x(), None), TypeError, "memory is of type NoneType, expected a Tensor"),
    "a memory of another rank": (lambda: module()(x(), zeros(M)), ValueError,
        "memory has 1 dimensions, expected 3: (slots, batch, memory_size), or 2 where unbatched"),
    "a memory of another rank, batch first": (lambda: module(batch_first=True)(x(), zeros(M)), ValueError,
        "expected 3: (batch, slots, memory_size)"),
    "a memory of another size": (lambda: module()(x(), zeros(S, B, 9)), RuntimeError,
        "memory has 9 features in its shape (5, 6, 9), expected 4: memory_size"),
    "a memory of another dtype": (lambda: module()(x(), memory().double()), ValueError,
        "memory is torch.float64 on cpu, expected torch.float32 on cpu: those of the weights"),
    "a memory on another device": (lambda: module()(x(), memory().to("meta")), ValueError,
        "memory is torch.float32 on meta, expected torch.float32 on cpu"),
    "a memory without slots": (lambda: module()(x(), zeros(0, B, M)), RuntimeError,
        "memory has no slots in its shape (0, 6, 4), expected at least 1; memory_lengths tells of empty memories"),
    "a memory of another batch": (lambda: module()(x(), zeros(S, 1, M)), RuntimeError,
        "memory is of 1 sequences, expected 6: the batch of input"),
    "a memory of another batch, batch first": (lambda: module(batch_first=True)(x(), zeros(S, B, M)), RuntimeError,
        "memory is of 5 sequences, expected 4: the batch of input"),
    "an unbatched memory": (lambda: module()(x(), zeros(S, M)), ValueError,
        "memory has shape (5, 4) and input (4, 6, 2), expected both to be batched, or neither"),
    "an unbatched input": (lambda: module()(x()[:, 0], memory()), ValueError,
        "memory has shape (5, 6, 4) and input (4, 2), expected both to be batched, or neither"),
    "lengths of another batch": (lambda: module()(x(), memory(), lengths=[1, 2]), ValueError,
        "lengths has shape (2,), expected (6,)"),
    "lengths that are too long": (lambda: module()(x(), memory(), lengths=[1, 2, 3, 4, 5, 0]), ValueError,
        "lengths holds 5, expected values from 0 to 4"),
    "lengths of one sequence": (lambda: module()(x()[:, 0], memory()[:, 0], lengths=[4]), ValueError,
        "lengths is given, expected None: an unbatched input"),
    "memory lengths of another batch": (lambda: module()(x(), memory(), memory_lengths=[1]), ValueError,
        "memory_lengths has shape (1,), expected (6,): one length for each sequence of the batch"),
    "one memory length": (lambda: module()(x(), memory(), memory_lengths=3), ValueError,
        "memory_lengths has shape (), expected (6,)"),
    "memory lengths that are too long": (lambda: module()(x(), memory(), memory_lengths=[0, 1, 2, 3, 5, 6]), ValueError,
        "memory_lengths holds 6, expected values from 0 to 5: the slots of memory"),
    "negative memory lengths": (lambda: module()(x(), memory(), memory_lengths=torch.tensor([0, 1, 2, 3, 5, -1])), ValueError,
        "memory_lengths holds -1, expected values from 0 to 5"),
    "memory lengths of another dtype": (lambda: module()(x(), memory(), memory_lengths=zeros(B)), TypeError,
        "memory_lengths has dtype torch.float32, expected integers: each is a number of slots"),
    "a mask for memory lengths": (lambda: module()(x(), memory(), memory_lengths=zeros(S, B).bool()), ValueError,
        "memory_lengths has shape (5, 6), expected (6,)"),
    "unbatched memory lengths": (lambda: module()(x()[:, 0], memory()[:, 0], memory_lengths=[1, 2]), ValueError,
        "memory_lengths has shape (2,), expected (1,)"),
    "weights that may be needed": (lambda: module()(x(), memory(), need_weights=1), TypeError,
        "need_weights should be of type bool, got: int"),
    "a step's weights that may be needed": (lambda: module().step(zeros(B, I), precomputed(), need_weights=None), TypeError,
        "need_weights should be of type bool, got: NoneType"),
    "a sparse state": (lambda: module()(x(), memory(), [state()[0], state()[1].to_sparse()]), RuntimeError,
        "hx[1] has layout torch.sparse_coo, expected torch.strided"),
    "one state": (lambda: module()(x(), memory(), zeros(1, B, H)), RuntimeError,
        "hx is of type Tensor, expected a state (h, c, fed) or a pair (h0, c0)"),
    "four states": (lambda: module()(x(), memory(), state() + state()[:1]), RuntimeError,
        "hx is of length 4, expected a state (h, c, fed) or a pair (h0, c0)"),
    "no state": (lambda: module()(x(), memory(), (None, None)), TypeError,
        "hx[0] is of type NoneType, expected a Tensor: hx is (h, c, fed) or (h0, c0)"),
    "a fed list": (lambda: module()(x(), memory(), (*state()[:2], [0.0])), TypeError,
        "hx[2] is of type list, expected a Tensor"),
    "fed, where nothing is": (lambda: module(feed=None)(x(), memory(), state()), ValueError,
        "fed is given, expected None where feed is None: nothing is fed"),
    "a state of another size": (lambda: module()(x(), memory(), (zeros(1, B, 9), *state()[1:])), RuntimeError,
        "h of hx has shape (1, 6, 9), expected (1, 6, 3): batch and layers, hidden size"),
    "a state of other layers": (lambda: module(num_layers=2)(x(), memory(), state()), RuntimeError,
        "h of hx has shape (1, 6, 3), expected (2, 6, 3)"),
    "an unbatched state": (lambda: module()(x(), memory(), (zeros(1, B, H), zeros(1, H))), RuntimeError,
        "c of hx has shape (1, 3), expected (1, 6, 3)"),
    "a batched state": (lambda: module()(x()[:, 0], memory()[:, 0], state()), RuntimeError,
        "h of hx has shape (1, 6, 3), expected (1, 3): layers, hidden size"),
    "another fed": (lambda: module(feed="context")(x(), memory(), state()), RuntimeError,
        "fed of hx has shape (6, 3), expected (6, 4): batch and what is fed"),
    "a state of another dtype": (lambda: module()(x(), memory(), [s.double() for s in state()]), RuntimeError,
        "h has dtype torch.float64, expected torch.float32: the dtype of input and weights"),
    "a state on another device": (lambda: module()(x(), memory(), [s.to("meta") for s in state()]), RuntimeError,
        "Input and hidden tensors are not at the same device"),
    "a step of all steps": (lambda: step(("input", x())), ValueError,
        "AttentionLSTM: Expected input to be 1D or 2D, got 3D instead"),
    "a step without input": (lambda: step(("input", None)), TypeError, "input is of type NoneType, expected a Tensor"),
    "a step over a memory": (lambda: step(("precomputed", memory())), TypeError,
        "precomputed is of type Tensor, expected Precomputed: what precompute returns"),
    "a step of another batch": (lambda: step(("input", zeros(7, I))), RuntimeError,
        "memory is of 6 sequences, expected 7: the batch of input"),
    "an unbatched step": (lambda: step(("input", zeros(I))), RuntimeError,
        "memory is of 6 sequences, expected 1: the batch of input"),
    "a step's state": (lambda: step(("state", (zeros(1, 5, H), zeros(1, 5, H)))), RuntimeError,
        "h of hx has shape (1, 5, 3), expected (1, 6, 3)"),
    "other keys": (lambda: step(("precomputed", precomputed(attention_size=8))), ValueError,
        "keys of precomputed are (5, 6, 8), torch.float32 on cpu, expected (5, 6, 3), torch.float32 on cpu: the memory was "
        "precomputed with other weights; call this module's precompute"),
    "no keys": (lambda: step(("precomputed", precomputed(memory_size=H, attention="dot")), of=module(memory_size=H)),
        ValueError,
        "keys of precomputed are None, expected a Tensor: the memory was precomputed with other weights"),
    "needless keys": (lambda: step(("precomputed", precomputed(memory_size=H)),
        of=module(memory_size=H, attention="dot")), ValueError, "keys of precomputed are a Tensor, expected None"),
    "another memory of a step": (lambda: step(("precomputed", precomputed(memory_size=9))), RuntimeError,
        "memory has 9 features in its shape (5, 6, 9), expected 4: memory_size"),
    "a memory of hand": (lambda: by_hand(memory=None), TypeError,
        "memory of precomputed is of type NoneType, expected a Tensor"),
    "keys of hand": (lambda: by_hand(keys=[1.0]), TypeError, "keys of precomputed is of type list, expected a Tensor"),
    "lengths of hand": (lambda: by_hand(memory_lengths=[S] * B), TypeError,
        "memory_lengths of precomputed is of type list, expected a Tensor or None: call precompute"),
    "int32 lengths of hand": (lambda: by_hand(memory_lengths=torch.ones(B, dtype=torch.int32)), ValueError,
        "memory_lengths of precomputed is torch.int32 on cpu, expected torch.int64 on cpu: call precompute"),
    "fewer lengths of hand": (lambda: by_hand(memory_lengths=torch.ones(2, dtype=torch.int64)), ValueError,
        "memory_lengths of precomputed has shape (2,), expected (6,): the memory's batch"),
    "long lengths of hand": (lambda: by_hand(memory_lengths=torch.full((B,), 9)), RuntimeError,
        "memory_lengths must lie between 0 and the number of slots"),
    "no memory to precompute": (lambda: module().precompute([1.0]), TypeError, "memory is of type list, expected a Tensor"),
    "memory lengths to precompute": (lambda: module().precompute(memory(), [1]), ValueError,
        "memory_lengths has shape (1,), expected (6,)"),
}  # fmt: skip


@pytest.mark.parametrize("given", ["abc", {"a": 1}, {1, 2}, [[1], [1, 2]], [None] * B])
@pytest.mark.parametrize("name", ["lengths", "memory_lengths"])
def test_what_are_no_lengths(name, given):
    with pytest.raises(TypeError, match=f"^{name} is .*, expected a Tensor or a list of integers: each is a number of"):
        module()(x(), memory(), **{name: given})
    with pytest.raises(
        TypeError, match=r"^lengths is .*, expected a Tensor or a list of integers: each is a number of"
    ):
        fastlstm.GRU(I, H)(x(), lengths=given)


@pytest.mark.parametrize(("run", "kind", "said"), CALLS.values(), ids=CALLS)
def test_bad_calls(run, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        run()


SHAPES = {"w_ih": (12, I + H), "w_hh": (12, H), "b_ih": (12,), "b_hh": (12,), "w_peephole": (3, H)}
BESIDE = {"w_query": (7, H), "w_key": (7, M), "w_score": (7,), "w_out": (H, M + H), "b_out": (H,)}


def weights(**changed) -> list[tuple[Tensor, ...]]:
    return [tuple(zeros(*shape) for shape in (SHAPES | changed).values())]


def beside(**changed) -> AttentionWeights:
    given = {name: shape if shape is None else zeros(*shape) for name, shape in (BESIDE | changed).items()}
    return AttentionWeights(**given)


WEIGHTS = {
    "none": (lambda: ([], beside()), {}, "weights has 0 entries, expected at least 1: one per layer"),
    "too few": (lambda: ([weights()[0][:1]], beside()), {}, "weights[0] has 1 tensors, expected 2 to 5: w_ih, w_hh, b_ih"),
    "not as many": (lambda: ([*weights(), weights()[0][:4]], beside()), {},
        "weights[1] has 4 tensors, expected 5: as many as weights[0]"),
    "of other dimensions": (lambda: (weights(w_hh=(12,)), beside()), {},
        "w_hh of weights[0] has shape (12,), expected two dimensions"),
    "no columns for what is fed": (lambda: (weights(w_ih=(12, 2)), beside()), {},
        "w_ih of weights[0] has shape (12, 2), expected at least 3 columns: after those of the input come 3 of the attentional "
        "vector that is fed"),
    "no columns for the context": (lambda: (weights(w_ih=(12, 2)), beside()), {"feed": None, "attend": "before"},
        "expected at least 4 columns: after those of the input come 4 of the context"),
    "rows": (lambda: (weights(w_ih=(9, 5)), beside()), {},
        "w_ih of weights[0] has shape (9, 5), expected (12, 5): 4 gates, 5 columns of input and hidden size 3"),
    "three gates": (lambda: (weights(), beside()), {"coupled": True},
        "w_ih of weights[0] has shape (12, 5), expected (9, 5): 3 gates"),
    "peepholes": (lambda: (weights(w_peephole=(2, 3)), beside()), {},
        "w_peephole of weights[0] has shape (2, 3), expected (3, 3)"),
    "of the layer below": (lambda: ([*weights(), *weights()], beside()), {},
        "w_ih of weights[1] has shape (12, 5), expected (12, 3)"),
    "another dtype": (lambda: ([(*weights()[0][:4], zeros(3, H).double())], beside()), {},
        "w_peephole of weights[0] is torch.float64 on cpu, expected torch.float32 on cpu: all weights are alike"),
    "another dtype beside": (lambda: (weights(), beside()._replace(w_out=zeros(H, M + H).half())), {},
        "w_out is torch.float16 on cpu, expected torch.float32 on cpu: all weights are alike"),
    "no key": (lambda: (weights(), beside(w_key=None)), {},
        "w_key is None, expected a Tensor where attention is 'additive' and output is 'tanh'"),
    "a needless query": (lambda: (weights(), beside()), {"attention": "general"},
        "w_query is given, expected None where attention is 'general' and output is 'tanh'"),
    "a needless gain": (lambda: (weights(), beside(g_score=())), {}, "g_score is given, expected None where"),
    "a needless output": (lambda: (weights(), beside()), {"feed": None, "attend": "before", "output": "hidden"},
        "w_out is given, expected None where attention is 'additive' and output is 'hidden'"),
    "no output": (lambda: (weights(), beside(w_out=None)), {}, "w_out is None, expected a Tensor where"),
    "a key of one dimension": (lambda: (weights(), beside(w_key=(7,))), {}, "w_key has shape (7,), expected two dimensions"),
    "a gain of one dimension": (lambda: (weights(), beside(g_score=(1,), b_score=(7,))), {"attention": "normalized_additive"},
        "g_score has shape (1,), expected no dimensions"),
    "another attention size": (lambda: (weights(), beside(w_score=(6,))), {},
        "w_score has shape (6,), expected (7,): hidden size 3, memory size 4 and attention size 7"),
    "another memory size": (lambda: (weights(), beside(w_out=(H, H + H))), {}, "w_out has shape (3, 6), expected (3, 7)"),
    "another key": (lambda: (weights(), beside(w_query=None, w_score=None)), {"attention": "general"},
        "w_key has shape (7, 4), expected (3, 4): hidden size 3, memory size 4"),
    "an option": (lambda: (weights(), beside()), {"attend": "never"}, "attend is 'never', expected one of 'after', 'before'"),
    "options together": (lambda: (weights(), beside()), {"attend": "before"},
        "feed is 'attentional', expected None where attend"),
    "a query layer": (lambda: (weights(), beside()), {"query_layer": 1}, "query_layer is 1, expected -1 to 0"),
    "dropout": (lambda: (weights(), beside()), {"output_dropout": 2.0}, "output_dropout should be a number in range [0, 1]"),
    "a backend": (lambda: (weights(), beside()), {"backend": "cuda"}, "backend is 'cuda', expected one of 'auto'"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "options", "said"), WEIGHTS.values(), ids=WEIGHTS)
def test_bad_weights(given, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        attention_lstm(x(), memory(), *given(), **options)


TYPES = {
    "None": (lambda: (None, beside()), "weights is of type NoneType, expected a list: an entry per layer"),
    "an entry": (lambda: ([None], beside()), "weights[0] is of type NoneType, expected a tuple of Tensors: w_ih, w_hh"),
    "a weight": (lambda: ([(*weights()[0][:2], None, None)], beside()),
        "weights[0][2] is of type NoneType, expected a Tensor: what a layer lacks is left out"),
    "beside": (lambda: (weights(), beside()._replace(w_key=3.0)), "w_key is of type float, expected a Tensor or None"),
    "no attention weights": (lambda: (weights(), {"w_key": zeros(7, M)}),
        "attention_weights is of type dict, expected AttentionWeights"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"coupled": 1}, TypeError, "coupled should be of type bool, got: int"),
        ({"backend": None}, ValueError, "backend is None, expected one of 'auto'"),
        ({"backend": ["auto"]}, ValueError, "backend is ['auto'], expected one of 'auto'"),
    ],
)
def test_options_of_other_types(options, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        attention_lstm(x(), memory(), weights(), beside(), **options)


@pytest.mark.parametrize(("given", "said"), TYPES.values(), ids=TYPES)
def test_what_are_no_weights(given, said):
    with pytest.raises(TypeError, match=re.escape(said)):
        attention_lstm(x(), memory(), *given())


@pytest.mark.parametrize("options", [{}, {"feed": None}], ids=["fed", "at once"])
def test_a_backend_that_cannot_run_says_so(options):
    with pytest.raises(
        RuntimeError,
        match=r"backend 'triton' can't run \w*lstm here: its kernels run on CUDA GPUs, and the tensors are on",
    ):
        module(backend="triton", **options)(x(), memory())
