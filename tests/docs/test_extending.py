"""The example of docs/extending.md: taken out of the text, installed as its reader would, and run."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, python_path

TOKENS, KEPT, WIDTH = 17, 8, 64  # of the scenario's model: 16 patches and the class token


def examples() -> dict[str, str]:
    """Return the files of the document: the blocks whose first line is a comment with their name."""
    blocks = re.findall(r"^```\w+\n# (\S+\.\w+)\n(.*?)^```$", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)
    return dict(blocks)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = python_path(folder / "installed", ROOT)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the document, with their package installed by pip, offline."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("extending")
    source = folder / "source"
    source.mkdir()
    for name, text in examples().items():
        home = source if name in ("pyproject.toml", "patch_dropout.py", "sign.py") else folder
        (home / name).write_text(text)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = run(folder, "-m", "pip", "install", *flags, "--target", str(folder / "installed"), str(source))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_document_has_the_files_that_it_speaks_of():
    assert set(examples()) == {
        "pyproject.toml", "patch_dropout.py", "sign.py", "mine.yaml", "test_my_methods.py", "mine-against-others.yaml",
    }  # fmt: skip


@pytest.mark.slow
def test_its_tests_pass(folder):
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_methods.py")
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


# Each in the same process: to load all that splitfed needs takes longer than any of them.
COMMANDS = """
import contextlib, io, json, sys
from splitfed.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv, code, out, err = ["splitfed", *command], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code or 0, out.getvalue(), err.getvalue()]))
"""


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, tuple[int, str, str]]:
    """The code, stdout and stderr of every command, by its first word and what it is about."""
    text = (folder / "mine.yaml").read_text()
    (folder / "wrong.yaml").write_text(text.replace("kept_tokens", "kept_token").replace("codec: sign", "codec: sing"))
    plain = [f"--set=compression.{role}.lossless=none" for role in ("smashed", "targets", "cut_gradient")]
    small = ["data.limit=96", "federation.rounds=1", "federation.clients=2", "federation.cohort=2",
             "compression.smashed.codec=float32", "engine.threads=1"]  # fmt: skip
    commands = [
        ["list", "reducers"], ["list", "codecs"], ["sweep", "mine-against-others.yaml", "--dry-run"],
        ["validate", "wrong.yaml"], ["simulate", "mine.yaml", *plain, *(f"--set={change}" for change in small)],
    ]  # fmt: skip
    done = run(folder, "-c", COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return {" ".join(c[:2]): json.loads(line) for c, line in zip(commands, done.stdout.splitlines(), strict=True)}


@pytest.mark.slow
def test_it_is_listed_with_its_paper_and_package_and_the_sweep_is_one(ended):
    for what, line in (
        ("reducers", r"patch_dropout +Keep the share .* \(arXiv 2208\.07220; my-methods 0\.1\)  kept_tokens=\?"),
        ("codecs", r"sign +One bit a number, .* \(arXiv 1901\.09847; my-methods 0\.1\)"),
    ):
        code, out, _ = ended[f"list {what}"]
        assert code == 0
        assert re.search(f"^{line}$", out, re.M), out
    code, out, error = ended["sweep mine-against-others.yaml"]
    assert code == 0, error
    assert len(re.findall(r"-seed[012]", out)) == 18


@pytest.mark.slow
def test_a_mistake_in_its_section_is_told_with_its_line(ended):
    code, _, error = ended["validate wrong.yaml"]
    assert code == 2
    missing, unknown, codec = error.splitlines()
    assert missing == "wrong.yaml:9: compression.reducer.kept_tokens: is missing"
    assert unknown == "wrong.yaml:9: compression.reducer.kept_token: unknown key, did you mean 'kept_tokens'?"
    assert codec.startswith("wrong.yaml:11: compression.cut_gradient.codec: unknown kind 'sing', known: 'float32', ")
    assert codec.endswith("'sign', did you mean 'sign'?")


@pytest.mark.slow
def test_a_run_sends_what_its_formulas_say(folder, ended):
    code, _, error = ended["simulate mine.yaml"]
    assert code == 0, error
    (made,) = (folder / "runs").iterdir()
    with open(made / "ledger.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["plane"] == "data"]
    sent = {role: sum(int(r["sent_bytes"]) for r in rows if r["role"] == role)
            for role in ("smashed", "targets", "cut_gradient", "side")}  # fmt: skip
    samples = sent["targets"] // 8
    assert 0 < samples <= 96
    tokens = samples * KEPT
    assert sent["smashed"] == 4 * tokens * WIDTH
    assert sent["cut_gradient"] == tokens * WIDTH // 8 + 4 * tokens
    assert sent["side"] == 0
    assert all(int(r["raw_bytes"]) % (4 * TOKENS * WIDTH) == 0 for r in rows if r["role"] == "smashed")
    assert '"my-methods": "0.1"' in (made / "environment.json").read_text()
