"""Files that people ask for: on a disk that is full the old one stays, and what a path leads to is what is written."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import full_disk
from matplotlib.figure import Figure

from splitfed.cli import main as cli
from splitfed.errors import RunError, WriteError
from splitfed.files import write
from splitfed.reports.study.plots import save


def command(*arguments: str) -> Callable[[Path], None]:
    """Return what runs a command whose last argument is the file it writes."""

    def run(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["splitfed", *arguments, str(path)])
            with pytest.raises(SystemExit) as end:
                cli.main()
        if end.value.code:
            raise WriteError("told")

    return run


@pytest.mark.parametrize(
    ("put", "suffix"),
    [
        (lambda path: write(path, "x" * 100), "txt"),
        (lambda path: save(Figure(), path), "png"),
        (lambda path: save(Figure(), path), "svg"),
        (command("schema", "--out"), "json"),
        (command("data", "digits", "--csv"), "csv"),
        (command("data", "digits", "--out"), "pdf"),
    ],
)
def test_a_file_that_cannot_be_written_whole_stays_the_old_one(
    put: Callable[[Path], None], suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"one.{suffix}"
    path.write_text("old")
    with full_disk(64), pytest.raises(RunError):
        put(path)
    told = capsys.readouterr().err
    assert told in ("", f"{path}: cannot be written (File too large)\n")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]
    put(path)
    assert path.stat().st_size > 64
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_stays_one_and_a_mode_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real")
    write(link, "new")
    assert link.is_symlink()
    assert (real.read_text(), real.stat().st_mode & 0o777) == ("new", 0o600)
    with full_disk(64), pytest.raises(WriteError, match=r"link: cannot be written"):
        write(link, "x" * 100)
    assert real.read_text() == "new"
    write(tmp_path / "name", os.fsdecode(b"a name of \xff"))
    assert (tmp_path / "name").read_bytes() == b"a name of \xff"


def test_what_is_no_plain_file_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    with open(tmp_path / "shell", "wb") as redirected:
        write(Path(f"/dev/fd/{redirected.fileno()}"), "where the shell has it")
        redirected.seek(0, os.SEEK_END)
        redirected.write(b", and more")
    assert (tmp_path / "shell").read_text() == "where the shell has it, and more"
