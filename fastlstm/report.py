"""What of a model is ours, and what runs it; what is not, and why."""

from typing import NamedTuple

from torch import nn

from fastlstm.backends import ATTENTION, explain
from fastlstm.convert import is_ours, is_recurrent, registered, why_not_ours
from fastlstm.kernels.variant import Variant


class Report(NamedTuple):
    """A model's recurrent modules, by their names in it; a model that is one itself has the name ""."""

    ours: dict[str, str]  # what it is, the backend that runs it where its weights are, and why
    others: dict[str, str]  # why it is not ours

    def __str__(self) -> str:
        lines = [f"{len(self.ours)} of {len(self.ours) + len(self.others)} recurrent modules are fastlstm's"]
        lines += [f"  {name or 'the model itself'}: {by}" for name, by in self.ours.items()]
        lines += [f"  {name or 'the model itself'}: not ours: {why}" for name, why in self.others.items()]
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Which recurrent modules of `model` are ours, and by which backend they run; which are not, and why.

    It changes nothing. A module in two places has two names. As `convert`, it sees registered submodules only, and knows no
    ConvLSTM but ours. Raises TypeError if `model` is no module.

    >>> model = nn.ModuleDict({"encoder": nn.LSTM(3, 5), "rnn": nn.RNN(5, 2)})
    >>> print(report(model))
    0 of 2 recurrent modules are fastlstm's
      encoder: not ours: fastlstm.convert(model) makes it ours
      rnn: not ours: torch.nn.modules.rnn.RNN has no counterpart in fastlstm
    """
    found = Report({}, {})
    registered(model)
    for name, module in model.named_modules(remove_duplicate=False):
        if is_ours(module):
            found.ours[name] = f"{module._get_name()}, {_what_runs(module)}"
        elif is_recurrent(module):
            found.others[name] = why_not_ours(module) or "fastlstm.convert(model) makes it ours"
    return found


def _what_runs(module: nn.Module) -> str:
    variant, requested = getattr(module, "variant", ATTENTION["attention_lstm"]), str(module.backend)
    assert isinstance(variant, Variant)
    weight = next(iter(module.parameters()), None)
    if weight is None:
        return "which has no Parameters"
    try:
        choice = explain(variant, weight.device.type, weight.dtype, requested)
    except RuntimeError as error:
        return f"which can't run: {error}"
    return f"by {choice.backend}: {choice.reason}"
