"""`modularbase eval` from files to tables, JSON, reports and plots, and every bad input as one sentence."""

import json
import lzma
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from tiny_packs import catalog_of

from modularbase_core import cli
from modularbase_core.cli.eval.bar import rate_bar

PYTHON = [
    {"prompt": "What is a list?", "response": "A sequence.", "domain": "python"},
    {"prompt": "What is a set?", "response": "A collection.", "domain": "python"},
]
MATHS = [{"prompt": "How many are 2 and 2?", "response": "The answer is 4.", "final": "4"}]
TASK = [{"prompt": "Write add.", "test_list": ["assert add(1, 2) == 3"], "response": "def add(a, b): return a + b"}]


@pytest.fixture
def evaluate(run, monkeypatch, tiny_packs, cache):
    """Evaluate the tiny packs."""
    monkeypatch.setattr("modularbase_core.packs.catalog.discover", lambda *more, **keys: catalog_of(tiny_packs))
    monkeypatch.setenv("MODULARBASE_CACHE", str(cache))

    def call(*arguments):
        return run("eval", *map(str, arguments))

    return call


@pytest.fixture
def files(tmp_path):
    """Some files of records, by name."""

    def write(name, values):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
        return path

    with lzma.open(tmp_path / "books.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write('{"text": "Once upon a time."}\n')
    named = {"python.jsonl": PYTHON, "maths/test.jsonl": MATHS, "tasks.jsonl": TASK, "empty.jsonl": []}
    return {name.split("/")[0].split(".")[0]: write(name, values) for name, values in named.items()} | {
        "books": tmp_path / "books.jsonl.xz"
    }


def test_help_tells_every_option_and_imports_nothing_heavy():
    program = (
        "import sys\nfrom modularbase_core.cli import main\ntry:\n    main(['eval', '--help'])\n"
        "except SystemExit:\n    pass\nprint([n for n in ('torch', 'tvm', 'numpy', 'tokenizers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for option in ("--pack", "--no-pack", "--all-packs", "--metrics", "--before", "--forgetting", "--out", "--plot"):
        assert option in done.stdout


def test_a_table_has_packs_as_rows_and_domains_as_columns(evaluate, files):
    done = evaluate(files["books"], files["python"], "--all-packs")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "perplexity, and against none: base and general chat alone"
    assert lines[1].split() == ["books", "python", "all"]
    assert [line.split()[0] for line in lines[2:5]] == ["none", "python_code", "routed"]
    assert lines[2].count("×1.00") == 3
    assert len({line.index("×") for line in lines[2:5]}) == 1
    assert "bits per byte" in lines
    assert "routing: messages that reach their pack, %" in lines
    assert "messages of a pack (rows) that went to (columns)" in lines
    assert lines[-1].startswith("3 records, tiny-base 1.0.0, ")


def test_json_is_one_document_with_everything(evaluate, files):
    done = evaluate(files["books"], f"mine={files['maths']}", "--json", "--pack", "python", "--limit", "1")
    found = json.loads(done.out)
    assert [(one["domain"], one["records"], one["taken"]) for one in found["files"]] == [
        ("books", 1, 1),
        ("mine", 1, 1),
    ]
    assert found["rows"] == {"python_code": ["python_code"]}
    assert set(found["metrics"]["perplexity"]) == {"none", "python_code"}
    assert {one["id"] for one in found["packs"]} == {"tiny-base", "tiny-router", "general_chat", "python_code"}
    assert found["settings"]["limit"] == 1
    assert found["modularbase"]
    assert found["seconds"]["perplexity"] > 0


def test_answers_options_and_programs(evaluate, files, tmp_path):
    out = tmp_path / "out"
    asked = ("--metrics", "exact,pass@k", "--max-tokens", "3", "--k", "1,2", "--no-pack", "--out", out)
    done = evaluate(files["maths"], files["tasks"], *asked)
    assert (done.code, done.err) == (0, "")
    assert "exact: the answer is right, %" in done.out
    for key in ("pass@1, %", "pass@2, %", "programs by how they ended"):
        assert key in done.out
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [one["metric"] for one in lines] == ["exact", "pass@k", "pass@k"]
    assert all("right" in one for one in lines)
    assert json.loads((out / "eval.json").read_text())["settings"]["k"] == [1, 2]


def test_before_and_after_are_compared_and_drawn(evaluate, files, tmp_path):
    out, plot = tmp_path / "out", tmp_path / "plots" / "eval.svg"
    assert evaluate(files["books"], "--out", out, "--plot", plot).code == 0
    assert ElementTree.parse(plot).getroot().get("viewBox")
    before = out / "eval.json"
    done = evaluate(files["books"], "--before", before, "--plot", plot)
    assert done.code == 0
    assert "perplexity now, and its change" in done.out
    assert "Forgetting" in plot.read_text()
    after = json.loads(before.read_text())
    after["metrics"]["perplexity"]["routed"]["domains"]["books"]["perplexity"] *= 1.5
    (tmp_path / "after.json").write_text(json.dumps(after))
    done = evaluate("--forgetting", before, tmp_path / "after.json")
    assert done.code == 0
    assert "+50.0%" in done.out
    assert done.out.splitlines()[-1] == "the most is forgotten by routed of books: +50.0%"
    found = json.loads(evaluate("--forgetting", before, tmp_path / "after.json", "--json").out)
    assert found["metrics"]["perplexity"]["routed"]["domains"]["books"]["change"] == pytest.approx(0.5)
    assert found["metrics"]["perplexity"]["none"]["domains"]["books"]["change"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "give a FILE"),
        (["none.jsonl"], 1, "none.jsonl does not exist"),
        (["{empty}"], 1, "holds no record"),
        (["{books}", "--pack", "pyhton"], 1, "no pack 'pyhton' is installed (did you mean 'python'"),
        (["{books}", "--metrics", "perplexty"], 1, "no metric 'perplexty' (did you mean 'perplexity'?)"),
        (["{books}", "--metrics", " ,"], 1, "--metrics names none"),
        (["{books}", "--metrics", "exact"], 1, "no record has a right answer"),
        (["{books}", "--metrics", "pass@k"], 1, "no record brings tests"),
        (["{books}", "--metrics", "routing"], 1, "no record names its domain"),
        (["{books}", "--limit", "0"], 1, "limit is 0; use numbers from 1 on"),
        (["{books}", "--k", "1,two"], 1, "k is '1,two'; use whole numbers"),
        (["{books}", "--k", ""], 1, "k is empty"),
        (["{books}", "--k", "5", "--samples", "2"], 1, "pass@5 needs 5 answers a task, but samples is 2"),
        (["{tasks}", "--metrics", "pass@k", "--k", "2", "-t", "0"], 1, "greedy answers to a task are all the same"),
        (["{books}", "--temperature", "-1"], 1, "temperature is -1.0"),
        (["{books}", "--max-tokens", "0"], 1, "max_tokens is 0"),
        (["{books}", "--plot", "p.png"], 1, "name a file that ends in .svg"),
        (["{books}", "--before", "{maths}"], 1, "is no evaluation"),
        (["{books}", "--before", "none.json"], 1, "cannot be read"),
        (["--forgetting", "{maths}", "{maths}"], 1, "is no evaluation"),
        (["{books}", "--forgetting", "a", "b"], 2, "leave FILE, --before and --out out"),
        (["--forgetting", "a"], 2, "requires 2 arguments"),
    ],
)
def test_what_is_wrong_is_one_sentence(evaluate, files, arguments, code, told):
    done = evaluate(*[word.format(**files) if "{" in word else word for word in arguments])
    assert done.code == code
    assert told in done.err
    assert done.out == ""
    if code == 1:
        assert len(done.err.strip().splitlines()) == 1


def test_a_report_that_cannot_be_written_is_told(evaluate, files, tmp_path):
    (tmp_path / "file").write_text("x")
    done = evaluate(files["books"], "--no-pack", "--out", tmp_path / "file" / "in")
    assert done.code == 1
    assert "cannot be written" in done.err


def test_an_interruption_leaves_nothing(evaluate, files, tmp_path, monkeypatch):
    def interrupted(*more):
        raise KeyboardInterrupt

    monkeypatch.setattr("modularbase_core.evaluate.run.perplexities", interrupted)
    done = evaluate(files["books"], "--no-pack", "--out", tmp_path / "out", "--plot", tmp_path / "plot.svg")
    assert done.code == cli.INTERRUPTED
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "plot.svg").exists()


def test_progress_is_drawn_with_its_rate_on_a_terminal_alone(monkeypatch, capsys):
    with rate_bar() as progress:
        progress("reading", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with rate_bar() as progress:
        for phase in ("reading", "answering"):
            for done in range(3):
                progress(phase, done, 2)
    err = capsys.readouterr().err
    assert "reading:" in err
    assert "answering:" in err
    assert "it/s" in err
    with rate_bar(quiet=True) as progress:
        progress("reading", 1, 2)
    assert capsys.readouterr().err == ""
