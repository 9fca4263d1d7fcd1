"""Forecasting sunspots: a two-layer LSTM against the naive forecasts, on years that it has not seen.

The series is the yearly sunspot number from 1700 to 2008, which statsmodels ships. Networks learn from the years before 1945
and forecast, at the end of every year from 1944 on, the next eleven years.

    python examples/forecast.py            # five networks; their mean is the forecast
    python examples/forecast.py --short    # a few seconds
"""

from typing import Annotated, NamedTuple

import torch
import typer
from _shared import ExampleError, Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastlstm

SPLIT = 1945  # the first year that is held out
WINDOW, AHEAD = 44, 11  # years that a forecast sees, and years that it is for; a solar cycle takes about 11
WARM_UP = 11  # years of a window without a loss
HIDDEN, DROPOUT = 32, 0.2
BATCH, LR = 32, 5e-3
# 245 years are few: each window is rescaled by up to e^GAIN either way, and NOISE added to what the network sees
GAIN, NOISE = 0.5, 0.3
ORDER = 22  # years that the linear forecast sees


class Series(NamedTuple):
    """`values` (N,) are the square roots of the sunspot numbers, over `scale`: large cycles vary more than small ones."""

    years: Tensor
    values: Tensor
    scale: float

    def sunspots(self, values: Tensor) -> Tensor:
        return (values * self.scale).clamp(min=0) ** 2


class Forecaster(nn.Module):
    """At every year of a window, the `AHEAD` years after it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastlstm.LSTM(1, HIDDEN, num_layers=2, dropout=DROPOUT, batch_first=True)
        self.output = nn.Linear(HIDDEN, AHEAD)

    def forward(self, windows: Tensor) -> Tensor:
        return self.output(self.lstm(windows.unsqueeze(-1))[0])


def load() -> Series:
    try:
        from statsmodels.datasets import sunspots
    except ImportError:
        raise ExampleError("statsmodels is missing; run: pip install 'fastlstm[examples]'") from None
    data = sunspots.load_pandas().data
    years = torch.tensor(data["YEAR"].to_numpy(), dtype=torch.int64)
    roots = torch.tensor(data["SUNACTIVITY"].to_numpy(), dtype=torch.float32).sqrt()
    scale = 2 * roots[years < SPLIT].std().item()
    return Series(years, roots / scale, scale)


def windows(values: Tensor, first: Tensor, length: int) -> Tensor:
    """(len(first), length): the values from each `first` index on."""
    return values[first[:, None] + torch.arange(length)]


def train(model: Forecaster, seen: Tensor, steps: int, random: torch.Generator, on_step) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        first = torch.randint(len(seen) - WINDOW - AHEAD + 1, (BATCH,), generator=random)
        gain = torch.exp(GAIN * (2 * torch.rand(BATCH, 1, generator=random) - 1))
        x = windows(seen, first, WINDOW + AHEAD) * gain
        target = x[:, 1:].unfold(1, AHEAD, 1)
        noise = NOISE * torch.randn(BATCH, WINDOW, generator=random)
        loss = (model(x[:, :WINDOW] + noise) - target)[:, WARM_UP:].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_step()
    return losses


@torch.no_grad()
def forecast(model: Forecaster, values: Tensor, at: Tensor) -> Tensor:
    """(len(at), AHEAD): what is expected from each index `at` on, knowing all before it."""
    model.eval()
    return model(windows(values, at - WINDOW, WINDOW))[:, -1]


def linear(values: Tensor, seen: int, at: Tensor) -> Tensor:
    """The least-squares forecast from the last `ORDER` years: one linear map per year ahead, fitted on the seen years."""

    def inputs(first: Tensor) -> Tensor:
        return nn.functional.pad(windows(values, first - ORDER, ORDER), (0, 1), value=1.0)

    fitted = torch.arange(ORDER, seen - AHEAD + 1)
    return inputs(at) @ torch.linalg.lstsq(inputs(fitted), windows(values, fitted, AHEAD)).solution


def errors(series: Series, forecasts: dict[str, Tensor], at: Tensor) -> dict[str, list[float]]:
    """Root mean square errors in sunspots: one per year ahead, then that of all years."""
    truth = series.sunspots(windows(series.values, at, AHEAD))
    found = {}
    for name, values in forecasts.items():
        square = (series.sunspots(values) - truth).square()
        found[name] = [*square.mean(0).sqrt().tolist(), square.mean().sqrt().item()]
    return found


def table(found: dict[str, list[float]], title: str) -> Table:
    result = Table(title=title)
    result.add_column("error (RMSE) in sunspots")
    for ahead in (1, 2, 5, AHEAD):
        result.add_column(f"{ahead} ahead", justify="right")
    result.add_column(f"all {AHEAD}", justify="right")
    for name, row in found.items():
        result.add_row(name, *(f"{row[k]:.1f}" for k in (0, 1, 4, AHEAD - 1, AHEAD)))
    return result


def picture(series: Series, forecasts: dict[str, Tensor], found: dict[str, list[float]], at: Tensor):
    from matplotlib.figure import Figure

    network = next(reversed(forecasts))
    figure = Figure(figsize=(12, 6), layout="constrained")
    above, below = figure.subplots(2, 1)
    shown = series.years >= SPLIT - 2 * AHEAD
    above.fill_between(
        series.years[shown], series.sunspots(series.values[shown]), color="0.88", label="observed", linewidth=0
    )
    for ahead, color in ((1, "#053061"), (5, "#d6604d")):
        values = series.sunspots(forecasts[network][:, ahead - 1])
        label = f"{network}, {ahead} year{'s' * (ahead > 1)} ahead"
        above.plot(series.years[at] + ahead - 1, values, color=color, marker=".", linewidth=1.2, label=label)
    above.axvline(SPLIT - 0.5, color="0.4", linewidth=1, linestyle=":")
    above.set(ylabel="sunspot number", xlim=(SPLIT - 2 * AHEAD, 2009), ylim=(0, None))
    above.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small")
    colors = ("#f4a582", "#d6604d", "0.5", "#053061")
    for (name, row), color in zip(found.items(), colors, strict=True):
        below.plot(range(1, AHEAD + 1), row[:AHEAD], marker="o", color=color, label=name)
    below.set(xlabel="years ahead", ylabel="error (RMSE) in sunspots", xticks=range(1, AHEAD + 1), ylim=(0, None))
    below.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize="small")
    return figure


def main(
    steps: Steps = None,
    members: Annotated[
        int | None, typer.Option(help="Networks whose mean is the forecast; without it, 5, or 1 with --short.")
    ] = None,
    seed: Seed = 0,
    out: Out = "runs",
    short: Short = False,
) -> None:
    """Sunspots forecast by a two-layer LSTM, and by persistence, the last cycle and linear autoregression."""
    prepare(out, steps=steps, members=members)
    check_seed(seed)
    steps = steps or (30 if short else 500)
    members = members or (1 if short else 5)
    torch.set_num_threads(1)  # the networks are too small to be shared among threads
    series = load()
    values, seen = series.values, int((series.years < SPLIT).sum())
    at = torch.arange(seen, len(values) - AHEAD + 1)
    each, losses = [], []
    with bar() as progress:
        task = progress.add_task("", total=members * steps)
        for member in range(seed, seed + members):
            progress.update(task, description=f"seed {member}")
            torch.manual_seed(member)
            model = Forecaster()
            random = torch.Generator().manual_seed(member)
            losses.append(train(model, values[:seen], steps, random, lambda: progress.advance(task)))
            each.append(forecast(model, values, at))

    forecasts = {
        "as the last year": values[at - 1, None].expand(-1, AHEAD),
        f"{AHEAD} years before": windows(values, at - AHEAD, AHEAD),
        f"linear, from {ORDER} years": linear(values, seen, at),
        f"two-layer LSTM, mean of {members}" if members > 1 else "two-layer LSTM": torch.stack(each).mean(0),
    }
    found = errors(series, forecasts, at)
    alone = [row[-1] for row in errors(series, {str(k): one for k, one in enumerate(each)}, at).values()]
    first, last = int(series.years[at[0]]), int(series.years[-1])
    console = Console()
    console.print(table(found, f"{first} to {last}, forecast at the end of {len(at)} years"))
    console.print(f"Each network alone: {min(alone):.1f} to {max(alone):.1f} over all {AHEAD} years", highlight=False)
    results = {"errors": found, "alone": alone, "losses": losses}
    save(picture(series, forecasts, found, at), results, out, "forecast")


app = command(main)

if __name__ == "__main__":
    app()
