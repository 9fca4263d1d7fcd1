"""The argument checks of `fastlstm.functional`, in PyTorch's words where it has any. Nothing below checks again."""

from fastlstm.checks.cell import check_cell
from fastlstm.checks.conv import (
    check_conv_fits,
    check_conv_hx,
    check_conv_input,
    check_conv_pair,
    check_conv_states,
    check_conv_weights,
    check_forecast,
    check_forecast_fits,
    check_image,
    check_only,
    check_peepholes,
)
from fastlstm.checks.conv_options import check_bool, check_dtype, check_geometry, per_dimension, positive
from fastlstm.checks.input import (
    check_dropout,
    check_input,
    check_lengths,
    check_no_lengths,
    check_packed,
    check_reset,
    check_steps,
)
from fastlstm.checks.states import check_hx, check_states
from fastlstm.checks.weights import check_weights

__all__ = [
    "check_bool",
    "check_cell",
    "check_conv_fits",
    "check_conv_hx",
    "check_conv_input",
    "check_conv_pair",
    "check_conv_states",
    "check_conv_weights",
    "check_dropout",
    "check_dtype",
    "check_forecast",
    "check_forecast_fits",
    "check_geometry",
    "check_hx",
    "check_image",
    "check_input",
    "check_lengths",
    "check_no_lengths",
    "check_only",
    "check_packed",
    "check_peepholes",
    "check_reset",
    "check_states",
    "check_steps",
    "check_weights",
    "per_dimension",
    "positive",
]
