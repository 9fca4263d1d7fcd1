"""`examples/dates.py` and `pronounce.py`: what is held out is, errors are counted right, Ctrl-C keeps what was learned."""

import random
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from types import ModuleType

import pytest
import torch
from running_examples import fell, load, short
from typer.testing import CliRunner

import fastlstm


def test_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the script is for, with fewer tests than the long form has."""
    printed, results = short("dates", tmp_path, monkeypatch, "--steps", "300")
    assert len(results["losses"]) == 300
    assert fell(results["losses"], 0.1)
    languages = [
        "German",
        "Greek",
        "English",
        "Spanish",
        "Finnish",
        "French",
        "Hungarian",
        "Polish",
        "Russian",
        "Turkish",
    ]
    assert list(results["right"]) == [*languages, "all"]
    assert results["exact"] > 98
    assert results["exact"] == pytest.approx(sum(sum(results["right"][name].values()) for name in languages) / 40)
    for row in results["right"]:
        assert f"│ {row} " in printed


@pytest.fixture
def dates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("dates", monkeypatch)


def test_no_day_is_seen_and_held_out(dates: ModuleType) -> None:
    seen, held_out = dates.split(random.Random(0))
    assert len(seen) + len(held_out) == 36525 == len({*seen, *held_out})
    assert len(held_out) == 3652
    assert dates.SHOWN in held_out
    assert min(*seen, *held_out) == date(1969, 1, 1)
    assert max(*seen, *held_out) == date(2068, 12, 31)


def test_written_dates_have_one_meaning(dates: ModuleType) -> None:
    """In the language that they tell, and their symbols are all known."""
    writer = dates.Dates()
    symbols, meant = writer.symbols(), {}
    for k in range(0, dates.DAYS, 41):
        day = dates.FIRST + timedelta(k)
        for language in dates.LANGUAGES:
            for length in dates.LENGTHS:
                text, iso = writer.pair(day, language, length)
                assert meant.setdefault(tuple(text), iso) == iso
                assert set(text) <= symbols.tokens.keys()
    assert "".join(writer.written(dates.SHOWN, "hu", "full")) == "hu2014. március 5., szerda"
    assert writer.pair(dates.SHOWN, "en", "short") == (["en", *"3/5/14"], list("2014-03-05"))


@pytest.fixture
def pronounce(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("pronounce", monkeypatch)


def test_pronounce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, results = short("pronounce", tmp_path, monkeypatch, "--word", "Colonel")
    assert len(results["losses"]) == 40
    assert fell(results["losses"], 0.9)
    assert list(results["said"]) == ["colonel", "knight", "psychology", "thoughtful", "schedule"]
    for search in ("greedy", "beam of 5"):
        assert f"│ {search} " in printed
        assert 0 < results["errors"][search]["phonemes"] <= 100


def test_words_are_held_out(pronounce: ModuleType) -> None:
    words = pronounce.lexicon()
    assert len(words) > 120_000
    assert words["tomato"] == [["T", "AH", "M", "EY", "T", "OW"], ["T", "AH", "M", "AA", "T", "OW"]]
    assert len({phoneme for all_said in words.values() for said in all_said for phoneme in said}) == 39
    seen, held_out = pronounce.split(words, pronounce.SHOWN, random.Random(0))
    assert len(held_out) == round(0.1 * len(words))
    assert len(seen) + len(held_out) + 5 == len(words) == len({*seen, *held_out, *pronounce.SHOWN})
    assert pronounce.split(words, pronounce.SHOWN, random.Random(0)) == (seen, held_out)


def test_all_words_come_before_any_comes_again(pronounce: ModuleType) -> None:
    words = {f"{k:0{1 + k % 7}b}": [[str(k)], [str(-k)]] for k in range(1000)}
    drawn, seen = [], pronounce.batches(words, list(words), 8, random.Random(0))
    while len(drawn) < 1000:
        batch = next(seen)
        assert len(batch) <= 8
        assert all(said in words[word] for word, said in batch)
        drawn += [word for word, _ in batch]
    assert sorted(drawn) == sorted(words)


@pytest.mark.parametrize(
    ("said", "truth", "expected"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("kitten", "sitting", 3),
        ("ab", "ba", 2),
        ("abc", "bc", 1),
    ],
)
def test_distance(said: str, truth: str, expected: int, pronounce: ModuleType) -> None:
    assert pronounce.distance(said, truth) == pronounce.distance(truth, said) == expected


def test_the_nearest_pronunciation_counts(pronounce: ModuleType) -> None:
    words = {"a": [["A"], ["B", "C"]], "b": [["D", "E"]], "c": [["F"]]}
    found = pronounce.errors(words, ["a", "b", "c"], [["B", "C"], ["D"], ["X", "Y", "F"]])
    # 0 of 2, 1 of 2 and 2 of 1 phonemes
    assert found == pytest.approx({"phonemes": 100 * 3 / 5, "words": 100 * 2 / 3})


def test_each_is_translated_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    translating = load("_translate", monkeypatch)
    symbols = translating.Symbols(["abc"])
    assert symbols.names == ["", "", "", "a", "b", "c"]
    tokens, lengths = symbols.batch(["ca", "b"], begin=True)
    assert tokens.t().tolist() == [[1, 5, 3, 2], [1, 4, 2, 0]]
    assert lengths == [4, 3]
    torch.manual_seed(0)
    model = fastlstm.Seq2Seq(6, 6, 4, 4)
    texts = ["abc", "c", "ab", "cccc", "ba"]
    for text, (said, looked) in zip(texts, translating.translate(model, symbols, symbols, texts, 5), strict=True):
        assert looked.shape == (len(said), len(text))
        ((alone, _),) = translating.translate(model, symbols, symbols, [text], 5)
        assert said == alone


@pytest.mark.parametrize("after", [0, 3])
def test_stopped(after: int, tmp_path: Path, pronounce: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C: what was learned until then is shown; nothing is, if it was nothing."""
    batches = pronounce.batches

    def stopped(*args: object) -> Iterator:
        drawn = batches(*args)
        for _ in range(after):
            yield next(drawn)
        raise KeyboardInterrupt

    monkeypatch.setattr(pronounce, "batches", stopped)
    ran = CliRunner().invoke(pronounce.app, ["--short", "--out", str(tmp_path)])
    if after:
        assert ran.exit_code == 0, ran.output
        assert "Stopped after 3 of 40 steps" in ran.output
        assert (tmp_path / "pronounce.png").exists()
    else:
        assert (ran.exit_code, ran.stderr) == (2, "pronounce.py: stopped before anything was learned\n")
        assert not list(tmp_path.iterdir())


def test_no_such_word(tmp_path: Path, pronounce: ModuleType) -> None:
    ran = CliRunner().invoke(pronounce.app, ["--word", "fastlstm", "--out", str(tmp_path)])
    words = "pronounce.py: --word fastlstm is not in the dictionary, expected one of its 124,926 words\n"
    assert (ran.exit_code, ran.stderr) == (2, words)
