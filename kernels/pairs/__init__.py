"""Cells over dual numbers, each a pair of rows, whose gradients are second derivatives: README.md derives them."""

from fastlstm.kernels.variant import Slots, Variant

# Of what they are the pairs, by the names of the op and of the variant's flags
PAIRS = (
    Variant("lstm_pairs", "pairs", "ifgo", ("h", "c"), projects=True),
    Variant("peephole_lstm_pairs", "pairs", "ifgo", ("h", "c"), peepholes="ifo", projects=True),
    Variant("cifg_lstm_pairs", "pairs", "igo", ("h", "c"), projects=True),
    Variant("cifg_peephole_lstm_pairs", "pairs", "igo", ("h", "c"), peepholes="io", projects=True),
    # q is W_hn h + b_hn, which r acts on: the weights of x feed it as well, since theirs have a column of biases
    Variant("gru_pairs", "pairs", "rzqn", ("h",), own_slots=Slots("nrzq", x=(0, 4), h=(1, 3))),
)
