"""`convert(model, ConvLSTM=...)`: what differs from ours only in training, from given states, or by more arguments stays."""

import re
from typing import Any

import pytest
import torch
from test_conv_convert import MAKE, C, Model, Pasted, convert, input_for
from torch import Tensor, nn


class Dropped(Pasted):
    """Of use in training only."""

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        return super().forward(nn.functional.dropout(input_tensor, 0.2, self.training), hidden_state)


class CellFirst(Pasted):
    """A state is (c, h)."""

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        return super().forward(input_tensor, hidden_state and [(h, c) for c, h in hidden_state])


class Deaf(Pasted):
    """What state it gets is nothing to it."""

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        return super().forward(input_tensor)


class OneState(Pasted):
    """A state is one tensor."""

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        return super().forward(input_tensor, None if hidden_state is None else [hidden_state.chunk(2, 1)])


class Masked(Pasted):
    def forward(self, input_tensor: Tensor, hidden_state: Any = None, mask: Any = None) -> Any:
        return super().forward(input_tensor if mask is None else input_tensor * mask, hidden_state)


class Open(Pasted):
    def forward(self, input_tensor: Tensor, **options: Any) -> Any:
        return super().forward(input_tensor, **options)


class Stateless(Pasted):
    """As ndrplz's: it has the argument, and takes none."""

    def forward(self, input_tensor: Tensor, hidden_state: Any = None) -> Any:
        if hidden_state is not None:
            raise NotImplementedError
        return super().forward(input_tensor)


OTHERS = {
    Dropped: "a trial of both ended with AssertionError: Tensor-likes are not close",
    CellFirst: "a trial of both ended with AssertionError: Tensor-likes are not close",
    Deaf: "a trial of both ended with AssertionError: Tensor-likes are not close",
    OneState: "a trial of both ended with AttributeError: 'list' object has no attribute 'chunk'",
    Masked: r"its forward takes \(.*mask.*expected \(input_tensor, hidden_state=None\), or \(input_tensor\): ours takes",
    Open: r"its forward takes \(.*\*\*options.*expected \(input_tensor, hidden_state=None\)",
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cls", OTHERS)
def test_it_stays_and_draws_nothing(cls: type[Pasted], training: bool) -> None:
    model = Model(cls(C, 4, (3, 3))).train(training)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="encoder: "):
        converted, skipped, _ = convert(model, ConvLSTM=cls)
    assert converted == []
    assert re.search(OTHERS[cls], skipped["encoder"])
    assert type(model.encoder) is cls
    assert model.encoder.training is training
    assert torch.get_rng_state().equal(before)


def test_what_takes_no_state_is_replaced() -> None:
    model, x = Model(Stateless(C, 4, (3, 3))), input_for(False)
    before = model(x)
    assert convert(model, ConvLSTM=Stateless).converted == ["encoder"]
    torch.testing.assert_close(model(x), before)


def test_another_reference_keeps_the_old_one() -> None:
    model = Model(MAKE["package"](4, (3, 3)))
    model.kept = [model.encoder]
    convert(model, ConvLSTM=type(model.encoder))
    assert type(model.kept[0]) is not type(model.encoder)
    assert not hasattr(model.encoder, "cell_list")


H0 = torch.zeros(2, 4, 4, 5)
STATES: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (3, TypeError, "hidden_state is of type int, expected a list of 2: a pair (h, c) for each layer"),
    "too few": ([(H0, H0)], ValueError, "hidden_state has 1 entries, expected 2: a pair (h, c) for each layer"),
    "no pair": ([(H0, H0), None], TypeError, "hidden_state[1] is None, expected a pair (h, c) of Tensors"),
    "half a pair": ([(H0, None), (H0, H0)], TypeError, "expected a pair (h, c) of Tensors"),
    "a shape": (
        [(H0, H0), (H0, H0[1:])], ValueError,
        "hidden_state[1][1] has shape (1, 4, 4, 5), expected (2, 4, 4, 5): batch, hidden channels and the image of its layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_bad_states(case: str) -> None:
    states, error, message = STATES[case]
    model = Model(Pasted(C, 4, (3, 3), 2))
    convert(model, ConvLSTM=Pasted)
    with pytest.raises(error, match=re.escape(message)):
        model.encoder(input_for(False), states)
