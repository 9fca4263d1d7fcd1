"""Weights of other frameworks by our names: each function returns a part of a `state_dict`, for one layer.

Parts of several layers and directions are joined with `|`:

>>> import numpy as np
>>> import torch
>>> kernels = [(np.ones((3, 20)), np.ones((5, 20)), np.zeros(20)) for _ in range(2)]
>>> lstm = torch.nn.LSTM(3, 5, bidirectional=True)
>>> lstm.load_state_dict(from_keras(*kernels[0]) | from_keras(*kernels[1], reverse=True))
<All keys matched successfully>

Weights are tensors, or whatever NumPy makes an array of; they are copied, and keep their dtype. Gates are named by letters: i
input, f forget, g cell (others write c or j), o output; r reset, z update, n new (others write h). `from_joeynmt`,
`from_fairseq`, `from_opennmt` and `from_tensorflow_attention` give an `AttentionLSTM`'s whole `state_dict`; all others take

    layer: k of the names `weight_ih_l{k}` and so on; None for the names of a cell, `weight_ih`.
    reverse: the names end on `_reverse`, those of the backward direction.

All raise ValueError where shapes don't fit each other, or where our modules don't have what the weights were made for, and
TypeError for what is no dense floating point.
"""

from fastlstm.loaders.attention import from_fairseq, from_joeynmt, from_opennmt, from_tensorflow_attention
from fastlstm.loaders.conv import from_conv_cat, from_conv_eight, from_conv_pair
from fastlstm.loaders.keras import from_keras
from fastlstm.loaders.onnx import from_onnx_order
from fastlstm.loaders.order import from_order
from fastlstm.loaders.tensorflow import from_tensorflow

__all__ = [
    "from_conv_cat",
    "from_conv_eight",
    "from_conv_pair",
    "from_fairseq",
    "from_joeynmt",
    "from_keras",
    "from_onnx_order",
    "from_opennmt",
    "from_order",
    "from_tensorflow",
    "from_tensorflow_attention",
]
