"""The named cases: sizes, layouts and uses at which a kernel may go wrong."""

from collections.abc import Iterable

from fastlstm.backends import CONVOLUTIONAL, VARIANTS
from fastlstm.case import Case, CaseError, parse

ROWWISE = {
    "one": "T1 B1 I1 H1",
    "three": "T3 B3 I3 H3",
    "step": "T1 B1 I16 H32",
    "step_of_some": "T1 B37 I116 H65 resets:0.2",
    "step_of_many": "T1 B130 I116 H65 resets:0.2",
    "few_steps": "T4 B7 I37 H66 packed:4,4,3,3,2,1,1 resets:0.2",
    "h16": "T5 B3 I4 H16",
    "h17": "T5 B3 I4 H17",
    "h64": "T5 B3 I64 H64",
    "h65": "T5 B3 I65 H65",
    "h128": "T12 B16 I32 H128",
    "h512": "T4 B8 I512 H512",
    "b1": "T5 B1 I17 H33",
    "one_row": "T20 B1 I17 H33",
    "two_rows": "T20 B2 I17 H33",
    "b6": "T5 B6 I8 H32",
    "b7": "T5 B7 I8 H32",
    "b33": "T5 B33 I8 H32",
    "b65": "T3 B65 I3 H17",
    "wide_input": "T5 B3 I300 H8",
    "long": "T400 B5 I3 H5",
    "longer": "T1000 B8 I3 H8",
    "saturated": "T12 B16 I16 H16 gain:100",
    "zero_state": "T5 B3 I4 H8 zero_state",
    "no_bias": "T5 B3 I4 H8 no_bias",
    "strided": "T5 B3 I17 H16 strided",
    "reverse": "T9 B3 I4 H17 reverse",
    "packed": "T9 B7 I4 H17 packed:9,9,6,5,5,2,1",
    "packed_equal": "T4 B6 I4 H16 packed:4-4",
    "packed_reverse": "T9 B7 I4 H17 reverse packed:9,8,6,5,5,2,1",
    "padded": "T11 B7 I4 H17 lengths:9,9,6,5,5,2,1",
    "padded_reverse": "T11 B7 I4 H17 reverse lengths:9,8,6,5,5,2,1",
    "padded_zeros": "T6 B5 I4 H17 lengths:6,4,1,0,0",
    "bidirectional": "T7 B3 I4 H17 bi",
    "two_layers": "T7 B3 I4 H17 L2",
    "stack": "T7 B6 I5 H16 L3 bi",
    "stack_packed": "T7 B4 I4 H9 L2 bi packed:7,4,4,2",
    "stack_padded": "T8 B4 I4 H9 L2 bi lengths:7,4,4,0",
    "projection": "T5 B7 I4 H33 P17",
    "projection_wide": "T8 B8 I80 H512 P256",
    "projection_one": "T5 B3 I4 H17 P1",
    "projection_reverse": "T5 B3 I4 H16 P8 reverse",
    "projection_packed": "T5 B4 I4 H16 P5 packed:5,5,3,1",
    "projection_stack": "T5 B4 I4 H16 P5 L2 bi",
    "only_y": "T5 B3 I4 H17 loss:y",
    "only_h_n": "T5 B3 I4 H17 loss:h_n",
    "only_c_n": "T5 B3 I4 H17 P5 loss:c_n",
    "frozen_input": "T5 B3 I4 H17 frozen:x",
    "frozen_states": "T5 B3 I4 H17 frozen:h0,c0",
    "frozen_weights": "T5 B3 I4 H17 P5 frozen:weight,bias",
    "frozen_biases": "T5 B3 I4 H17 frozen:bias",
    "frozen_recurrence": "T5 B3 I4 H17 frozen:weight_hh,x,h0",
    "reset": "T9 B7 I4 H17 resets:0.2",
    "reset_reverse": "T9 B7 I4 H17 reverse resets:0.2",
    "reset_packed": "T9 B7 I4 H17 packed:9,9,6,5,5,2,1 resets:0.2",
    "reset_stack": "T8 B4 I4 H9 L2 bi lengths:7,4,4,0 resets:0.2",
    "cells": "T9 B7 I4 H17 return_cells",
    "cells_stack": "T7 B4 I4 H9 P5 L2 bi return_cells",
    "cells_padded_reset": "T7 B4 I4 H16 lengths:7,4,4,0 resets:0.2 return_cells",
}
OF_EVERY_VARIANT = (
    "one", "step", "step_of_some", "step_of_many", "few_steps", "h16", "h65", "h128", "b1", "b33", "long", "saturated",
    "zero_state", "no_bias", "strided", "reverse", "packed", "padded_reverse", "padded_zeros", "stack", "stack_packed",
    "projection_stack", "only_h_n", "frozen_input", "frozen_weights", "frozen_recurrence", "reset_reverse", "reset_packed",
    "reset_stack", "cells", "cells_stack", "cells_padded_reset",
)  # fmt: skip
CONV = {
    "conv": "T5 B3 I4 H8 S5x6 k3",
    "one": "T1 B1 I1 H1 S1x1 k3",
    "step": "T1 B1 I5 H32 S5x6 k3",
    "h17": "T5 B3 I3 H17 S5x6 k3",
    "h65": "T3 B3 I65 H65 S3x3 k3",
    "image": "T3 B2 I3 H16 S17x19 k3",
    "large": "T2 B3 I3 H8 S64x64 k3",
    "wider_kernel": "T5 B3 I4 H8 S2x4 k5x7",
    "even": "T5 B3 I4 H8 S5x6 k2x4",
    "five": "T4 B2 I5 H17 S9x8 k5",
    "five_deep": "T2 B2 I16 H48 L2 S6x10 k5",
    "row": "T5 B3 I4 H8 S1x9 k1x3",
    "1d": "T5 B3 I4 H8 S11 k3",
    "1d_even": "T5 B3 I4 H17 S6 k4 stride:2",
    "3d": "T3 B3 I4 H8 S3x4x5 k3",
    "3d_even": "T3 B3 I4 H8 S4x5x3 k2x3x1 stride:1x2x1 dilation:2x1x1",
    "stride": "T5 B3 I4 H8 S7x8 k3 stride:2x3",
    "dilation": "T5 B3 I4 H8 S7x8 k3 dilation:2x3",
    "valid": "T5 B3 I4 H8 S6x7 k3x2 padding:0",
    "padding": "T5 B3 I4 H8 S7x8 k3 stride:2x1 dilation:1x2 padding:2+0x1+3",
    "long": "T100 B2 I3 H5 S3x4 k3",
    "saturated": "T12 B3 I4 H8 S5x6 k3 gain:100",
    "saturated_wide": "T6 B2 I16 H64 S8x8 k3 gain:100",
    "zero_state": "T5 B3 I4 H8 S5x6 k3 zero_state",
    "no_bias": "T5 B3 I4 H8 S5x6 k3 no_bias",
    "strided": "T5 B3 I17 H16 S5x6 k3 strided",
    "reverse": "T5 B3 I4 H17 S5x6 k3 reverse",
    "padded": "T7 B5 I4 H8 S5x6 k3 lengths:6,4,4,1,0",
    "padded_reverse": "T7 B5 I4 H8 S5x6 k3 reverse lengths:6,4,4,1,0",
    "bidirectional": "T5 B3 I4 H8 S5x6 k3 bi",
    "stack": "T5 B3 I4 H9 L3 S6x5 k3 stride:2x1 bi",
    "stack_padded": "T7 B4 I4 H9 L2 S5x6 k3 bi lengths:7,4,4,0 zero_state",
    "unequal": "T5 B3 I4 H5,17,3 S5x6 k3 bi",
    "blind": "T5 B3 I4 H8 L2 S7x8 k3 stride:2x1 blind",
    "blind_no_bias": "T5 B3 I4 H8 S5x6 k3 blind no_bias",
    "1x1": "T5 B3 I4 H8 S5x6 k1",
    "1x1_on_1x1": "T5 B7 I4 H17 S1x1 k1",
    "1x1_stack": "T5 B3 I4 H8 L2 S6x5 k1 stride:2 bi",
    "1x1_padded": "T6 B4 I4 H8 S5x6 k1 lengths:6,3,3,1",
    "1x1_reset": "T5 B3 I4 H8 S5x6 k1 resets:0.2 return_cells",
    "only_y": "T5 B3 I4 H8 S5x6 k3 loss:y",
    "only_h_n": "T5 B3 I4 H8 S5x6 k3 loss:h_n",
    "only_c_n": "T5 B3 I4 H8 S5x6 k3 loss:c_n",
    "frozen_input": "T5 B3 I4 H8 S5x6 k3 frozen:x",
    "frozen_states": "T5 B3 I4 H8 S5x6 k3 frozen:h0,c0",
    "frozen_weights": "T5 B3 I4 H8 S5x6 k3 frozen:weight,bias",
    "frozen_biases": "T5 B3 I4 H8 S5x6 k3 frozen:bias",
    "frozen_recurrence": "T5 B3 I4 H8 S5x6 k3 frozen:weight_hh,x,h0",
    "reset": "T9 B4 I4 H8 S5x6 k3 resets:0.2",
    "reset_reverse": "T9 B4 I4 H8 S5x6 k3 reverse resets:0.2",
    "reset_stack": "T8 B4 I4 H8 L2 S3x4 k3 bi lengths:7,4,4,0 resets:0.2",
    "cells": "T6 B3 I4 H8 S5x6 k3 return_cells",
    "cells_padded_reset": "T7 B4 I4 H8 S5x6 k3 lengths:7,4,4,0 resets:0.2 return_cells",
}
OF_EVERY_CONV = (
    "conv", "one", "large", "even", "1d", "3d", "saturated", "zero_state", "no_bias", "reverse", "stack", "unequal", "blind",
    "1x1", "1x1_on_1x1", "1x1_stack", "only_c_n", "frozen_recurrence", "cells_padded_reset",
)  # fmt: skip
HADAMARD = ("conv", "3d", "stride", "stack", "unequal", "1x1", "frozen_input", "cells_padded_reset")
ATTENTION = {
    "additive": "T5 B3 I4 H8 S6 M8 need_weights",
    "one": "T1 B1 I1 H1 S1 M1 need_weights",
    "step": "T1 B4 I16 H32 S9 M16 need_weights",
    "h17": "T5 B3 I4 H17 S11 M9 A13 need_weights",
    "h65": "T5 B3 I65 H65 S17 M33 A65 need_weights",
    "h128": "T6 B16 I32 H128 S20 M64 need_weights",
    "b1": "T5 B1 I17 H33 S6 M8 need_weights",
    "b33": "T5 B33 I3 H8 S6 M5 need_weights",
    "one_slot": "T5 B3 I4 H8 S1 M8 need_weights",
    "many_slots": "T5 B2 I4 H16 S300 M16 need_weights",
    "long": "T60 B4 I3 H5 S6 M6 need_weights",
    "memory_lengths": "T5 B3 I4 H8 S6 M8 memory:6,0,3 need_weights",
    "padded": "T7 B5 I4 H8 S6 M8 lengths:7,5,5,1,0 memory:3,6,0,1,4 need_weights",
    "stack": "T7 B5 I4 H8 L3 S6 M5 lengths:7,5,5,1,0 memory:3,6,0,1,4 need_weights",
    "query_layer": "T5 B4 I4 H8 L3 S6 M8 query_layer:1 need_weights",
    "normalized": "T5 B3 I4 H8 S6 M5 A13 normalized_additive need_weights",
    "dot": "T5 B3 I4 H8 S6 M8 dot memory:1,6,0 need_weights",
    "dot_h64": "T5 B3 I4 H64 S33 M64 dot need_weights",
    "scaled_dot": "T7 B5 I4 H17 S6 M17 scaled_dot lengths:7,5,5,1,0 memory:3,6,0,1,4 need_weights",
    "general": "T5 B3 I4 H8 L2 S6 M5 general memory:4,6,1 need_weights",
    "context": "T5 B3 I4 H8 S6 M5 feed:context memory:4,6,1 need_weights",
    "context_hidden": "T5 B3 I4 H8 S6 M5 general feed:context output:hidden need_weights",
    "linear": "T5 B3 I4 H8 S6 M8 output:linear need_weights",
    "peephole": "T5 B3 I4 H8 L2 S6 M8 peephole need_weights",
    "coupled": "T5 B3 I4 H8 S6 M8 general coupled need_weights",
    "coupled_peephole": "T7 B5 I4 H8 S6 M8 peephole coupled lengths:7,5,5,1,0 memory:3,6,0,1,4 need_weights",
    "before": "T5 B3 I4 H8 S6 M5 feed:None attend:before memory:4,6,0 need_weights",
    "before_stack": "T7 B5 I4 H8 L2 S6 M8 dot feed:None attend:before query_layer:0 lengths:7,5,5,1,0 memory:3,6,0,1,4 "
    "need_weights",
    "before_hidden": "T5 B3 I4 H8 S6 M8 general feed:None attend:before output:hidden need_weights",
    "unfed": "T5 B3 I4 H8 S6 M5 feed:None memory:4,6,0 need_weights",
    "unfed_long": "T64 B8 I4 H64 S40 M16 feed:None need_weights",
    "unfed_normalized": "T7 B5 I4 H8 L2 S6 M8 normalized_additive feed:None lengths:7,5,5,1,0 memory:3,6,0,1,4 need_weights",
    "unfed_dot": "T5 B3 I4 H8 S6 M8 dot feed:None memory:4,6,0 need_weights",
    "unfed_dot_no_weights": "T5 B3 I4 H8 S6 M8 dot feed:None memory:4,6,0",
    "unfed_general": "T7 B5 I4 H8 L3 S6 M5 general feed:None query_layer:0 lengths:7,5,5,1,0 memory:3,6,0,1,4",
    "no_weights": "T5 B3 I4 H8 S6 M8 memory:4,6,1",
    "no_bias": "T5 B3 I4 H8 S6 M8 need_weights no_bias",
    "zero_state": "T5 B3 I4 H8 S6 M8 need_weights zero_state",
    "strided": "T5 B3 I17 H16 S6 M7 memory:4,6,1 need_weights strided",
    "saturated": "T6 B16 I16 H16 S6 M8 need_weights gain:30",
    "large_keys": "T5 B16 I4 H16 S6 M16 memory_gain:100 need_weights",
    "peaked": "T5 B16 I4 H16 S6 M16 dot feed:None memory_gain:4 need_weights",
    "only_y": "T5 B3 I4 H8 S6 M8 need_weights loss:y",
    "only_h_n": "T5 B3 I4 H8 S6 M8 memory:4,6,1 need_weights loss:h_n",
    "only_c_n": "T5 B3 I4 H8 L2 S6 M8 need_weights loss:c_n",
    "only_fed_n": "T5 B3 I4 H8 S6 M8 need_weights loss:fed_n",
    "only_alignments": "T5 B3 I4 H8 S6 M5 memory:4,6,1 need_weights loss:alignments",
    "frozen_input": "T5 B3 I4 H8 S6 M8 need_weights frozen:x",
    "frozen_memory": "T5 B3 I4 H8 S6 M8 need_weights frozen:memory,weight_key",
    "frozen_states": "T5 B3 I4 H8 S6 M8 need_weights frozen:h0,c0,fed0",
    "frozen_weights": "T5 B3 I4 H8 S6 M8 need_weights frozen:weight,bias",
    "frozen_attention": "T5 B3 I4 H8 S6 M8 need_weights frozen:weight_query,weight_key,weight_score,weight_out",
}


def cases(variant: str, table: dict[str, str], some: Iterable[str] | None = None, more: str = "") -> dict[str, Case]:
    """Those of a table, or some of them, of a variant, by their full names; what the variant doesn't have is left out."""
    found = {}
    for name in table if some is None else some:
        try:
            found["_".join(filter(None, [variant, more, name]))] = parse(f"{variant} {table[name]} {more}")
        except CaseError:
            continue
    return found


CASES = cases("lstm", ROWWISE)
for variant in VARIANTS:
    if variant != "lstm":
        CASES |= cases(variant, ROWWISE, OF_EVERY_VARIANT)
CASES |= cases("conv_lstm", CONV)
for variant in CONVOLUTIONAL:
    if variant != "conv_lstm":
        CASES |= cases(variant, CONV, OF_EVERY_CONV)
for variant, kind in CONVOLUTIONAL.items():
    if kind.peepholes:
        CASES |= cases(variant, CONV, HADAMARD, more="hadamard")
CASES |= cases("attention_lstm", ATTENTION)
