"""`modularbase data`: sources listed and fetched, shards prepared, records shown."""

import json
import subprocess
import sys
import tarfile

import pytest
from tiny_packs import TOKENIZER, catalog_of

from modularbase_core.train.shards import read_index

CHAT = {"prompt": "add 2 and 2", "response": "that is 4", "lang": "en", "source": "sums"}


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    rows = [CHAT, CHAT, {"text": "The harbour was quiet.", "lang": "en"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "b.md").write_text("# Boats\n\nThey lay side by side.")
    return folder


@pytest.fixture
def packs(monkeypatch, tiny_packs):
    """The tiny set is what is installed."""
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(tiny_packs))


def test_list_tells_of_our_sources_as_a_table_and_as_json(run):
    lines = run("data", "list").out.splitlines()
    assert lines[0].split() == ["name", "licence", "MB", "domains", "what"]
    (gsm8k,) = (line for line in lines if line.startswith("gsm8k "))
    assert gsm8k.split(maxsplit=5) == ["gsm8k", "MIT", "5.1", "reasoning", "router", gsm8k.split(maxsplit=5)[5]]
    assert lines[-1].startswith(f"{len(lines) - 2} sources; `modularbase data fetch NAME --to FOLDER`")
    listed = json.loads(run("data", "list", "--domain", "legal", "--json").out)
    names = {one["name"] for one in listed}
    assert {"cuad", "lawrefbook"} <= names
    assert "gsm8k" not in names
    assert all("legal" in one["domains"] and one["urls"] and one["licence"] for one in listed)
    done = run("data", "list", "--domain", "pyhton")
    assert (done.code, done.out) == (1, "")
    assert "no domain 'pyhton' (did you mean 'python'?); use one of base, chat" in done.err


def test_fetch_brings_sources_of_a_catalogue_and_tells_what_failed(run, tmp_path, texts):
    with tarfile.open(tmp_path / "boats.tar.gz", "w:gz") as archive:
        archive.add(texts, "texts")
    named = '[[source]]\nname = "{}"\nwhat = "x"\nlicence = "CC0-1.0"\nurls = ["{}"]\nfiles = "texts/*"\n'
    places = {"boats": (tmp_path / "boats.tar.gz").as_uri(), "gone": "file:///nowhere/x"}
    (tmp_path / "mine.toml").write_text("".join(named.format(*one) for one in places.items()))
    mine = ("--catalogue", str(tmp_path / "mine.toml"), "--to", str(tmp_path / "to"))
    done = run("data", "fetch", "boats", "gone", *mine, "--quiet")
    assert done.code == 1
    assert done.out.splitlines()[0].startswith("boats: 1 file, 0.0 MB, in ")
    assert "(as it came; --unpack unpacks archives)" in done.out
    assert done.out.splitlines()[1:] == ["  CC0-1.0", "  the texts are texts/*"]
    assert done.err.startswith("error: gone/x cannot be fetched from file:///nowhere/x")
    done = run("data", "fetch", "boats", *mine)
    assert (done.code, done.out) == (1, "")
    assert "already; remove it to fetch it again" in done.err
    (tmp_path / "to/boats/boats.tar.gz").unlink()
    done = run("data", "fetch", "boats", *mine, "--unpack", "--json")
    assert json.loads(done.out)["fetched"][0]["unpacked"] == [str(tmp_path / "to/boats/boats")]
    shown = run("data", "show", str(tmp_path / "to/boats"), "--tokenizer", str(TOKENIZER), "--records", "9")
    assert shown.out.count("record ") == 4
    assert "no source 'boat' is listed (did you mean 'boats'?)" in run("data", "fetch", "boat", *mine).err


def test_prepare_makes_shards_that_show_reads_and_the_same_again_does_nothing(run, tmp_path, texts, packs):
    out = tmp_path / "shards"
    asked = ("data", "prepare", str(texts), "--tokenizer", "tiny-base", "--out", str(out), "--response-only")
    done = run(*asked)
    assert done.code == 0
    index = read_index(out)
    tokens = index.tokens("train")
    assert done.out.splitlines() == [
        f"train: {tokens} tokens of 3 documents, shards: 1",
        "left out: 1 records that were there before",
        "to learn from them:",
        "[[mix]]",
        f'files = ["{out}"]',
        f"tokens = {tokens}",
    ]
    assert done.err.startswith("tokenising (0.0 MB)")
    assert (index.tokenizer, index.response_only, index.vocabulary_size) == ("tiny-base", True, 8192)
    again = run(*asked, "--json")
    assert again.err == f"{out} is complete; nothing is left to do\n"
    assert json.loads(again.out)["splits"][0] == {"split": "train", "tokens": tokens, "documents": 3, "shards": 1}
    shown = run("data", "show", str(out), "--records", "1").out
    assert shown.splitlines()[0].startswith("record 1: train-00000, ")
    assert "<|begin|><|user|>add 2 and 2<|end|><|assistant|>⟦that is 4<|end|>⟧" in shown
    assert "tokenizer: tiny-base; ⟦ ⟧ counts for the loss" in shown


def test_prepare_takes_globs_languages_and_a_pack_by_its_alias(run, tmp_path, texts, packs):
    done = run(
        "data", "prepare", str(texts / "*.jsonl"), "--tokenizer", "chat", "--out", str(tmp_path / "shards"),
        "--language", "en", "--validation", "0.5", "--shard-tokens", "1", "--quiet", "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert sum(one["documents"] for one in report["splits"]) == 2
    assert report["duplicates"] == 1


def test_what_was_interrupted_says_how_it_goes_on(run, tmp_path, texts, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("modularbase_core.train.preparing.prepare", stop)
    done = run("data", "prepare", str(texts), "--tokenizer", str(TOKENIZER), "--out", str(tmp_path / "x"), "--quiet")
    assert done.code == 130
    assert done.err.startswith(f"stopped; the same command goes on after the last whole shard in {tmp_path / 'x'}")


def test_show_tells_what_the_model_sees_and_what_counts(run, texts):
    file = ("data", "show", str(texts / "a.jsonl"), "--tokenizer", str(TOKENIZER))
    done = run(*file, "--response-only", "--records", "1")
    first, second, *_ = done.out.splitlines()
    assert first.startswith("record 1: conversation of 2 messages, en, sums, ")
    assert first.endswith(" count for the loss")
    assert second == "<|begin|><|user|>add 2 and 2<|end|><|assistant|>⟦that is 4<|end|>⟧"
    text = run(*file, "--skip", "2", "--tokens", "3").out
    assert "record 3: text, en, " in text
    assert "all but the first count for the loss\n<|begin|>⟦The" in text
    assert " tokens more\n" in text
    described = json.loads(run(*file, "--json", "--records", "9").out)
    assert [one["about"][0] for one in described] == ["conversation of 2 messages"] * 2 + ["text"]
    assert described[2]["text"] == "<|begin|>The harbour was quiet.<|end|>"
    assert described[2]["learnt"] == described[2]["tokens"] - 1


def test_on_a_terminal_what_counts_is_green(run, texts, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *arguments: False)
    done = run(
        "data", "show", str(texts / "a.jsonl"), "--tokenizer", str(TOKENIZER), "--response-only", "--records", "1"
    )
    assert "<|assistant|>\x1b[32mthat is 4<|end|>\x1b[0m" in done.out
    assert done.out.endswith("; green counts for the loss\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "none.jsonl", "--tokenizer", str(TOKENIZER)), "none.jsonl does not exist; check the data folder"),
        (
            ("show", "{}/a.jsonl", "--tokenizer", "no.json"),
            "the tokenizer no.json does not exist; name a tokenizer.json",
        ),
        (("show", "{}/a.jsonl", "--tokenizer", "{}/a.jsonl"), "cannot read the tokenizer "),
        (
            ("show", "{}/a.jsonl", "--tokenizer", "tiny-bace"),
            "no pack 'tiny-bace' is installed (did you mean 'tiny-base'",
        ),
        (
            ("show", "{}/a.jsonl", "--tokenizer", str(TOKENIZER), "--skip", "9"),
            "has no record after the first 9; lower",
        ),
        (
            ("prepare", "{}", "--tokenizer", str(TOKENIZER), "--out", "{}"),
            "holds other files; name a new folder as --out",
        ),
        (("prepare", "{}/x*", "--tokenizer", str(TOKENIZER), "--out", "{}/o"), "no file that can be read matches"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, texts, packs, arguments, told):
    done = run("data", *(argument.format(texts) for argument in arguments))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert told in done.err
    assert done.err.count("\n") == 1


def test_without_a_base_show_asks_for_a_tokenizer(run, texts, monkeypatch):
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of({}))
    assert "no base is installed whose tokenizer could be taken" in run("data", "show", str(texts / "a.jsonl")).err


def test_an_unknown_command_is_answered_with_the_nearest(run):
    done = run("data", "prepair")
    assert done.code == 2
    assert "no command 'prepair' (did you mean 'prepare'?); `modularbase data --help` lists them" in done.err
    assert all(f"\n  {name} " in run("data", "--help").out for name in ("fetch", "list", "prepare", "show"))


def test_data_is_prepared_and_shown_without_torch(tmp_path, texts):
    program = (
        "import sys\nfrom modularbase_core.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as error:\n    print(error.code, 'torch' in sys.modules)\n"
    )
    asked = ["data", "prepare", texts, "--tokenizer", TOKENIZER, "--out", tmp_path / "shards", "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *asked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
