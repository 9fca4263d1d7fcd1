"""Moving digits: a ConvLSTM foretells the next frame, and then several with its eyes closed, of digits that drift and bounce.

The glyphs are real: scikit-learn's `load_digits`, 1,797 handwritten digits, scanned at 8x8. The motion is made up: a glyph of
16x16 crosses a dark frame of 32x32 at constant speed and bounces off its edges. The last 297 glyphs are held out.

    python examples/moving_digits.py                 # on a CPU, under three minutes
    python examples/moving_digits.py --short         # a few seconds
    python examples/moving_digits.py --video FILE    # a film of your own instead, whose last quarter is held out
"""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from _shared import ExampleError, Out, Seed, Short, Steps, bar, check_seed, command, prepare, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    binary_cross_entropy_with_logits,
    grid_sample,
    interpolate,
    pixel_shuffle,
    pixel_unshuffle,
)

import fastlstm

SIZE, GLYPH, DIGITS = 32, 16, 1  # pixels of a frame's side and of a digit's, and digits in a frame
SPEED = 1.0, 3.0  # pixels a frame, from and to
HELD_OUT = 297  # glyphs
SEEN, AHEAD = 10, 5  # frames that the network looks at, and frames that it foretells after the last of them
WARM_UP = 2  # frames that show where things move: what is foretold after the first alone is not judged
PATCH, HIDDEN, KERNEL, LAYERS = 4, 64, 3, 2  # a patch of 4x4 pixels is a place of the map, its pixels are channels
BATCH, LR = 8, 4e-3
TESTS = 64  # clips
LONGEST_SIDE, MOST_FRAMES = 64, 2000  # of a film: it is made smaller, and its end is left out

# (SEEN + AHEAD, B, 1, height, width), values from 0 to 1, of B clips that are drawn
Draw = Callable[[int, torch.Generator], Tensor]


class Films(NamedTuple):
    """What there is to learn from, and what is held out."""

    seen: Draw
    held_out: Draw


class Predictor(nn.Module):
    """The frame after each, and `AHEAD - 1` after those: logits of the values. `mean` is that of all pixels."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.lstm = fastlstm.ConvLSTM2d(PATCH**2, HIDDEN, KERNEL, num_layers=LAYERS)
        self.output = nn.Conv2d(HIDDEN, PATCH**2, 3, padding=1)
        nn.init.constant_(self.output.bias, torch.tensor(mean).logit().item())

    def forward(self, frames: Tensor) -> Tensor:
        patches = pixel_unshuffle(frames.flatten(0, 1), PATCH).unflatten(0, frames.shape[:2])
        looking, state = self.lstm(patches)
        blind, _ = self.lstm(None, state, steps=AHEAD - 1)
        maps = torch.cat([looking, blind])
        return pixel_shuffle(self.output(maps.flatten(0, 1)), PATCH).unflatten(0, maps.shape[:2])


def moving_digits() -> Films:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ExampleError("scikit-learn is missing; run: pip install 'fastlstm[examples]'") from None
    glyphs = torch.tensor(load_digits().images / 16, dtype=torch.float32).unsqueeze(1)
    return Films(partial(drift, glyphs[:-HELD_OUT]), partial(drift, glyphs[-HELD_OUT:]))


def drift(glyphs: Tensor, B: int, random: torch.Generator) -> Tensor:
    """Clips of glyphs (N, 1, 8, 8) on their way; where two overlap, the brighter shows."""
    T, K, room = SEEN + AHEAD, B * DIGITS, SIZE - GLYPH

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    angle, speed = 2 * torch.pi * uniform(K, 1), SPEED[0] + (SPEED[1] - SPEED[0]) * uniform(K, 1)
    step = speed * torch.cat([angle.cos(), angle.sin()], dim=1)
    straight = room * uniform(K, 2) + torch.arange(T)[:, None, None] * step  # (T, K, 2)
    corner = room - (straight.remainder(2 * room) - room).abs()  # bounced off 0 and `room`
    # where in the glyph, whose sides are at -1 and 1, a frame's pixel is: `grid_sample` enlarges and moves at once
    theta = torch.eye(2, 3).mul(SIZE / GLYPH).repeat(T * K, 1, 1)
    theta[:, :, 2] = ((room - 2 * corner) / GLYPH).flatten(0, 1)
    grid = affine_grid(theta, [T * K, 1, SIZE, SIZE], align_corners=False)
    chosen = glyphs[torch.randint(len(glyphs), (K,), generator=random)]
    frames = grid_sample(chosen.repeat(T, 1, 1, 1), grid, align_corners=False)
    return frames.view(T, B, DIGITS, 1, SIZE, SIZE).amax(2)


def film(file: Path) -> Films:
    """A film in shades of grey, made smaller."""
    try:
        from imageio import v3 as imageio
    except ImportError:
        raise ExampleError("imageio is missing; run: pip install 'fastlstm[examples]'") from None
    try:
        pictures = [small(torch.from_numpy(p)) for p in islice(imageio.imiter(file, plugin="FFMPEG"), MOST_FRAMES)]
    except (OSError, ImportError, RuntimeError, ValueError, IndexError) as error:
        raise ExampleError(f"cannot read --video {file}: {str(error).splitlines()[0]}") from None
    T = SEEN + AHEAD
    if len(pictures) < 4 * T:
        raise ExampleError(
            f"--video {file} has {len(pictures)} frames, expected {4 * T} or more: a quarter is held out, and a clip has {T}"
        )
    frames = torch.stack(pictures)
    split = len(frames) * 3 // 4
    return Films(partial(cut, frames[:split]), partial(cut, frames[split:]))


def small(picture: Tensor) -> Tensor:
    """(1, height, width) of (height, width, 3) bytes: sides that patches fill."""
    grey = picture.float().mean(-1)[None, None] / 255
    scale = min(1.0, LONGEST_SIDE / max(grey.shape))
    sides = [PATCH * max(1, round(side * scale / PATCH)) for side in grey.shape[2:]]
    return interpolate(grey, sides, mode="area")[0]


def cut(frames: Tensor, B: int, random: torch.Generator) -> Tensor:
    """Clips of a film (N, 1, height, width)."""
    T = SEEN + AHEAD
    first = torch.randint(len(frames) - T + 1, (B,), generator=random)
    return frames[torch.arange(T)[:, None] + first]


def train(model: Predictor, draw: Draw, steps: int, batch: int, random: torch.Generator, on_step) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        clips = draw(batch, random)
        loss = binary_cross_entropy_with_logits(model(clips[:SEEN])[WARM_UP - 1 :], clips[WARM_UP:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_step()
    return losses


def errors(clips: Tensor, foretold: Tensor) -> dict[str, list[float]]:
    """Mean square errors of each frame from the third on: of the last frame that was looked at, and of what was foretold."""
    last = torch.arange(WARM_UP - 1, SEEN + AHEAD - 1).clamp(max=SEEN - 1)
    found = {"the last frame again": clips[last], "ConvLSTM": foretold[WARM_UP - 1 :]}
    return {name: (said - clips[WARM_UP:]).square().flatten(1).mean(1).tolist() for name, said in found.items()}


def next_frame(row: list[float]) -> float:
    """The mean of those where the frame before was seen."""
    looking = row[: SEEN - WARM_UP + 1]
    return sum(looking) / len(looking)


def table(found: dict[str, list[float]], tests: int) -> Table:
    result = Table(title=f"Mean square error on {tests} clips that were held out")
    result.add_column("foretold as")
    for header in ("next frame", *(f"{k} ahead" for k in range(2, AHEAD + 1))):
        result.add_column(header, justify="right")
    rows = {name: [next_frame(row), *row[SEEN - WARM_UP + 1 :]] for name, row in found.items()}
    copied, ours = rows.values()
    for name, row in rows.items():
        result.add_row(name, *(f"{value:.4f}" for value in row))
    result.add_row("times less", *(f"{a / b:.1f}" for a, b in zip(copied, ours, strict=True)))
    return result


def picture(clips: Tensor, foretold: Tensor, found: dict[str, list[float]]):
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    grey = colormaps["gray"].with_extremes(bad="white")
    T, shown = SEEN + AHEAD, min(3, clips.shape[1])
    height, width = clips.shape[-2:]
    strip, gap = 1.6 * height / width, 2  # inches, pixels
    figure = Figure(figsize=(12, shown * strip + 3.2), layout="constrained")
    *strips, below = figure.subplots(shown + 1, 1, height_ratios=[strip] * shown + [2.6])
    for b, axes in enumerate(strips):
        sheet = torch.full((2 * (height + gap), T * (width + gap)), torch.nan)
        for t in range(T):
            for row, frame in enumerate((clips[t, b, 0], foretold[t - 1, b, 0] if t else None)):
                if frame is not None:
                    top, left = row * (height + gap), t * (width + gap)
                    sheet[top : top + height, left : left + width] = frame
        axes.imshow(sheet.numpy(), cmap=grey, vmin=0, vmax=1, zorder=2)
        middle = [(width - 1) / 2 + t * (width + gap) for t in range(T)]
        axes.set_xticks(middle, [f"{t + 1}" for t in range(T)] if b == 0 else [""] * T)
        axes.set_yticks([(height - 1) / 2, (height - 1) / 2 + height + gap], ["true", "foretold"])
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.axvline(SEEN * (width + gap) - (gap + 1) / 2, color="#d6604d", linewidth=2, zorder=3)
    strips[0].set_title(
        f"frames 1 to {SEEN} are looked at, one at a time; {SEEN + 1} is the next, the others are foretold blind"
    )
    for (name, row), color in zip(found.items(), ("0.5", "#053061"), strict=True):
        below.plot(range(WARM_UP + 1, T + 1), row, marker="o", color=color, label=name)
    below.axvline(SEEN + 0.5, color="#d6604d", linewidth=2)
    below.set(xlabel="frame", ylabel="mean square error", xticks=range(WARM_UP + 1, T + 1), ylim=(0, None))
    below.legend(frameon=False, loc="upper left", fontsize="small")
    return figure


def main(
    steps: Steps = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Learn from this film instead of moving digits.")
    ] = None,
    seed: Seed = 0,
    out: Out = "runs",
    short: Short = False,
) -> None:
    """A ConvLSTM foretells frames of moving digits, or of a film, and is compared with showing the last frame again."""
    prepare(out, steps=steps)
    check_seed(seed)
    steps = steps or (25 if short else 1000)
    batch, tests = (4, 8) if short else (BATCH, TESTS)
    films = moving_digits() if video is None else film(video)
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    clips = films.held_out(tests, random)
    model = Predictor(films.seen(tests, random).mean().item())
    with bar() as progress:
        task = progress.add_task("", total=steps)
        losses = train(model, films.seen, steps, batch, random, lambda: progress.advance(task))

    with torch.no_grad():
        foretold = model(clips[:SEEN]).sigmoid()
    found = errors(clips, foretold)
    Console().print(table(found, tests))
    copied, ours = (next_frame(row) for row in found.values())
    results = {"errors": found, "times less": copied / ours, "losses": losses}
    save(picture(clips, foretold, found), results, out, "moving_digits")


app = command(main)

if __name__ == "__main__":
    app()
