"""Small models of libraries that people use, trained with PyTorch's modules and with ours, offline, in seconds each.

    python examples/compatibility.py            # every library that is installed here
    python examples/compatibility.py darts flair

A run is made twice from one seed, and what the two predict (or their weights, in reinforcement learning) is compared. It prints
the table of docs/compatibility.md: how ours came in, which modules were ours, and the largest difference, relative to the
largest value. It is that of float32 sums in another order, grown over the steps of training.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import fastlstm
from fastlstm import backends
from fastlstm.modules.base import Recurrent
from fastlstm.modules.cells import Cell

TRAINER = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def ours_in(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, (Recurrent, Cell))]


def swap(model: nn.Module, ours: bool, keep_type: bool = False) -> None:
    if ours:
        for name, reason in fastlstm.convert(model, keep_type=keep_type).skipped.items():
            print(f"    left: {name}: {reason}", file=sys.stderr)


def patched(ours: bool) -> contextlib.AbstractContextManager[None]:
    return fastlstm.patch() if ours else contextlib.nullcontext()


Run = Callable[[bool], tuple[nn.Module, Tensor]]


def darts_rnn(ours: bool, kind: str = "RNNModel", cell: str = "LSTM") -> tuple[nn.Module, Tensor]:
    import darts
    from darts import models

    series = darts.TimeSeries.from_values(np.sin(np.arange(80, dtype=np.float32) / 5))
    sizes = {"training_length": 16} if kind == "RNNModel" else {"output_chunk_length": 4}
    options = {
        "n_epochs": 3,
        "random_state": 0,
        "pl_trainer_kwargs": TRAINER,
        "hidden_dim": 8,
        "input_chunk_length": 12,
    }
    model = getattr(models, kind)(model=cell, **options, **sizes)
    with patched(ours):
        model.fit(series)
    return model.model, torch.from_numpy(model.predict(6).values())


def darts_tft(ours: bool) -> tuple[nn.Module, Tensor]:
    import darts
    from darts.models import TFTModel

    series = darts.TimeSeries.from_values(np.sin(np.arange(80, dtype=np.float32) / 5))
    model = TFTModel(
        input_chunk_length=12, output_chunk_length=4, hidden_size=8, lstm_layers=2, dropout=0.0, n_epochs=1, random_state=0,
        add_relative_index=True, likelihood=None, loss_fn=nn.MSELoss(), pl_trainer_kwargs=TRAINER,
    )  # fmt: skip
    model.fit(series)
    swap(model.model, ours)
    model.fit(series, epochs=2)
    return model.model, torch.from_numpy(model.predict(4).values())


def neuralforecast(ours: bool, kind: str = "LSTM") -> tuple[nn.Module, Tensor]:
    import pandas as pd
    from neuralforecast import NeuralForecast, models

    frame = pd.DataFrame({"unique_id": "a", "ds": np.arange(80), "y": np.sin(np.arange(80) / 5)})
    size = {"TFT": "hidden_size", "DeepAR": "lstm_hidden_size"}.get(kind, "encoder_hidden_size")
    model = getattr(models, kind)(h=4, input_size=12, max_steps=6, random_seed=0, **{size: 8}, **TRAINER)
    swap(model, ours)
    forecast = NeuralForecast(models=[model], freq=1)
    forecast.fit(frame)
    return forecast.models[0], torch.from_numpy(forecast.predict()[kind].to_numpy())


def pytorch_forecasting(ours: bool, kind: str = "DeepAR") -> tuple[nn.Module, Tensor]:
    import lightning
    import pandas as pd

    # its LSTM derives from PyTorch's, so the name has to be ours when that class is made
    for name in [name for name in sys.modules if name.split(".")[0] == "pytorch_forecasting"]:
        del sys.modules[name]
    with patched(ours):
        library = importlib.import_module("pytorch_forecasting")

    frame = pd.DataFrame({"t": np.arange(80), "y": np.sin(np.arange(80) / 5).astype(np.float32), "group": "a"})
    data = library.TimeSeriesDataSet(
        frame, time_idx="t", target="y", group_ids=["group"], max_encoder_length=12, max_prediction_length=4,
        time_varying_unknown_reals=["y"], time_varying_known_reals=["t"] if kind == "TemporalFusionTransformer" else [],
    )  # fmt: skip
    lightning.seed_everything(0, verbose=False)
    loader = data.to_dataloader(batch_size=16, shuffle=False)
    model = getattr(library, kind).from_dataset(data, hidden_size=8, dropout=0.0, log_interval=-1)
    lightning.Trainer(max_steps=6, enable_checkpointing=False, **TRAINER).fit(model, loader)
    model.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        return model, model(next(iter(loader))[0])["prediction"]


def sb3_contrib(ours: bool, adapted: bool = False) -> tuple[nn.Module, Tensor]:
    import sb3_contrib as library

    options = {"lstm_hidden_size": 16, "net_arch": [16]}
    agent = library.RecurrentPPO(
        "MlpLstmPolicy",
        "CartPole-v1",
        n_steps=32,
        batch_size=16,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=options,
    )
    swap(agent.policy, ours)
    if ours and adapted:
        fastlstm.adapters.sb3(agent.policy)
    agent.learn(96)
    return agent.policy, torch.cat([p.detach().flatten() for p in agent.policy.parameters()])


def flair(ours: bool, kind: str = "LSTM") -> tuple[nn.Module, Tensor]:
    from flair.data import Dictionary, Sentence
    from flair.embeddings import CharacterEmbeddings, OneHotEmbeddings, StackedEmbeddings
    from flair.models import SequenceTagger
    from flair.training_utils import store_embeddings

    texts = ["the dog sees a cat", "a cat sleeps", "the bird sings while the old dog sleeps"]
    sentences = [Sentence(text) for text in texts]
    words, letters, tags = Dictionary(), Dictionary(), Dictionary(add_unk=False)
    for sentence in sentences:
        for token in sentence:
            words.add_item(token.text)
            tag = "NOUN" if token.text in ("dog", "cat", "bird") else "OTHER"
            tags.add_item(tag)
            token.add_label("pos", tag)
            for letter in token.text:
                letters.add_item(letter)
    torch.manual_seed(0)
    embeddings = StackedEmbeddings([OneHotEmbeddings(words, embedding_length=8), CharacterEmbeddings(letters)])
    tagger = SequenceTagger(
        embeddings, tags, "pos", hidden_size=8, rnn_type=kind, dropout=0.0, word_dropout=0.0, locked_dropout=0.0
    )
    swap(tagger, ours)
    optimizer = torch.optim.SGD(tagger.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        loss, _ = tagger.forward_loss(sentences)
        loss.backward()
        optimizer.step()
        store_embeddings(sentences, "none")
    with torch.no_grad():
        return tagger, torch.stack([tagger.forward_loss([sentence])[0] for sentence in sentences])


def gluonts(ours: bool) -> tuple[nn.Module, Tensor]:
    import lightning
    import pandas as pd
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.torch.model.deepar import DeepAREstimator

    series = pd.Series(np.sin(np.arange(120) / 5), index=pd.period_range("2020-01-01", periods=120, freq="D"))
    lightning.seed_everything(0, verbose=False)
    options = {"hidden_size": 8, "context_length": 12, "num_batches_per_epoch": 6, "batch_size": 8}
    with patched(ours):
        predictor = DeepAREstimator("D", 4, trainer_kwargs={"max_epochs": 1, **TRAINER}, **options).train(
            PandasDataset(series)
        )
    torch.manual_seed(0)
    (forecast,) = predictor.predict(PandasDataset(series), num_samples=5)
    return predictor.prediction_net, torch.from_numpy(forecast.samples)


def torchrl(ours: bool, kind: str = "LSTM", keep_type: bool = False) -> tuple[nn.Module, Tensor]:
    from tensordict import TensorDict
    from torchrl import modules

    torch.manual_seed(0)
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    keys = {"in_keys": ["x", *states], "out_keys": ["y", *(("next", name) for name in states)]}
    model = getattr(modules, f"{kind}Module")(input_size=3, hidden_size=8, **keys)
    swap(model, ours, keep_type)
    B, T = 2, 10
    is_init = torch.zeros(B, T, 1, dtype=torch.bool)
    is_init[0, 4] = True
    zeros = {name: torch.zeros(B, T, 1, 8) for name in states}
    data = TensorDict({"x": torch.randn(B, T, 3), "is_init": is_init, **zeros}, [B, T])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # it asks isinstance(lstm, nn.LSTM) where trajectories begin inside a batch
    with modules.set_recurrent_mode(True):
        for _ in range(6):
            optimizer.zero_grad()
            model(data.clone())["y"].square().sum().backward()
            optimizer.step()
        return model, model(data.clone())["y"].detach()


def speechbrain(ours: bool, kind: str = "LSTM") -> tuple[nn.Module, Tensor]:
    # it imports torchaudio, whose newest build doesn't load beside the newest torch; its recurrent layers need none of it
    for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms"):
        sys.modules.setdefault(name, mock.MagicMock(__version__="", __spec__=ModuleSpec(name, None), __path__=[]))
    from speechbrain.nnet import RNN

    torch.manual_seed(0)
    model = getattr(RNN, kind)(hidden_size=8, input_size=3, num_layers=2, bidirectional=True)
    swap(model, ours)
    x, lengths = torch.randn(4, 10, 3), torch.tensor([1.0, 0.5, 0.9, 0.2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        model(x, lengths=lengths)[0].square().mean().backward()
        optimizer.step()
    return model, model(x, lengths=lengths)[0].detach()


RUNS: dict[str, list[tuple[str, str, Run]]] = {
    "darts": [
        ("RNNModel, LSTM", "patch", darts_rnn),
        ("RNNModel, GRU", "patch", lambda ours: darts_rnn(ours, cell="GRU")),
        ("BlockRNNModel, LSTM", "patch", lambda ours: darts_rnn(ours, "BlockRNNModel")),
        ("TFTModel", "convert, between two fits", darts_tft),
    ],
    "neuralforecast": [
        (kind, "convert", lambda ours, kind=kind: neuralforecast(ours, kind))
        for kind in ("LSTM", "GRU", "DeepAR", "TFT")
    ],
    "pytorch_forecasting": [
        (kind, "patch, around the import", lambda ours, kind=kind: pytorch_forecasting(ours, kind))
        for kind in ("DeepAR", "TemporalFusionTransformer", "RecurrentNetwork")
    ],
    "gluonts": [("DeepAREstimator", "patch", gluonts)],
    "torchrl": [
        ("LSTMModule", "convert", torchrl),
        ("LSTMModule", "convert, keep_type=True", lambda ours: torchrl(ours, keep_type=True)),
        ("GRUModule", "convert, keep_type=True", lambda ours: torchrl(ours, "GRU", keep_type=True)),
    ],
    "speechbrain": [
        ("nnet.RNN.LSTM", "convert", speechbrain),
        ("nnet.RNN.GRU", "convert", lambda ours: speechbrain(ours, "GRU")),
    ],
    "sb3_contrib": [
        ("RecurrentPPO", "convert", sb3_contrib),
        ("RecurrentPPO", "adapters.sb3", lambda ours: sb3_contrib(ours, True)),
    ],
    "flair": [
        ("SequenceTagger, LSTM", "convert", flair),
        ("SequenceTagger, GRU", "convert", lambda ours: flair(ours, "GRU")),
    ],
}


def row(library: str, what: str, how: str, run: Run) -> str:
    try:
        model, before = run(False)
        assert not ours_in(model)
        model, after = run(True)
        assert not any(isinstance(m, (nn.LSTM, nn.GRU)) and not isinstance(m, Recurrent) for m in model.modules())
    except Exception as error:  # the table tells what does not work as well
        cells = "–", f"{type(error).__name__}: {error}"
    else:
        difference = (after - before).abs().max() / before.abs().max()
        cells = ", ".join(f"`{name}`" for name in ours_in(model)) or "none", f"{difference:.0e}" if difference else "0"
    return f"| {' | '.join((library, importlib.metadata.version(library), what, how, *cells))} |"


def main(libraries: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.chdir(tempfile.mkdtemp())  # some leave checkpoints where they run
    print(
        f"torch {torch.__version__}; LSTM and GRU: {backends.explain(backends.VARIANTS['lstm'], 'cpu', torch.float32).reason}\n"
    )
    print("| library | version | model | how | ours | largest difference |\n| --- | --- | --- | --- | --- | --- |")
    for library in libraries or RUNS:
        if importlib.util.find_spec(library) is None:
            print(f"| {library} | not installed | – | – | – | – |")
            continue
        for what, how, run in RUNS[library]:
            print(row(library, what, how, run), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
