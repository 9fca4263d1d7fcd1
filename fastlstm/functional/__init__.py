"""One stateless function per variant, and one for a step of it. Arguments are checked here, once: what is below trusts them."""

from fastlstm.functional.attention_lstm import (
    AttentionLSTMResult,
    AttentionLSTMState,
    attention_lstm,
    attention_lstm_cell,
    attention_lstm_memory,
)
from fastlstm.functional.attention_values import AttentionState, AttentionWeights, Precomputed
from fastlstm.functional.conv_lstm import ConvLSTMResult, ConvLSTMState, conv_lstm, conv_lstm_cell
from fastlstm.functional.driver import Weights
from fastlstm.functional.gru import gru
from fastlstm.functional.lstm import LSTMResult, LSTMState, cifg_lstm, lstm, peephole_lstm
from fastlstm.functional.steps import cifg_lstm_cell, gru_cell, lstm_cell, peephole_lstm_cell

__all__ = [
    "AttentionLSTMResult",
    "AttentionLSTMState",
    "AttentionState",
    "AttentionWeights",
    "ConvLSTMResult",
    "ConvLSTMState",
    "LSTMResult",
    "LSTMState",
    "Precomputed",
    "Weights",
    "attention_lstm",
    "attention_lstm_cell",
    "attention_lstm_memory",
    "cifg_lstm",
    "cifg_lstm_cell",
    "conv_lstm",
    "conv_lstm_cell",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "peephole_lstm",
    "peephole_lstm_cell",
]
