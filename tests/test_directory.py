"""The directory of one gunicorn, where its workers' user has put what it likes: an arbiter that is root follows nothing."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sseflask.worker import directory

UID, GID = os.getuid(), os.getgid()
#: Nobody.
OTHER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")


@pytest.fixture(autouse=True)
def arbiter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that is an arbiter for the first time, whose temporary directory is the test's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(directory, "_made", {})
    monkeypatch.setattr(directory, "_held", held := [])
    monkeypatch.setattr(atexit, "register", lambda *args: None)
    yield
    for file in held:
        os.close(file)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory for all gunicorns of this user."""
    path = tmp_path / f"sseflask-{UID}"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that is no gunicorn's, with something in it."""
    path = tmp_path / "gunicorn-victim"
    path.mkdir()
    (path / "file").write_text("precious")
    return path


def contents(path: Path) -> list[str]:
    """What is in a directory."""
    return sorted(each.name for each in path.iterdir())


def leave(uid: int = UID) -> None:
    """What the arbiter does at its end."""
    pid, made = os.getpid(), directory._made[os.getpid()]
    directory._leave(pid, made.parent, made.name, uid)


def test_made_found_and_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arbiter makes one, the one that it starts by USR2 finds it, and the last of them removes it."""
    made = directory.of_this_arbiter(UID, GID)
    assert directory.of_this_arbiter(UID, GID) == made and contents(made) == ["lock"]
    (home / str(os.getpid())).rename(home / str(os.getppid()))
    monkeypatch.setattr(directory, "_made", {})
    monkeypatch.setenv(directory.PARENT, str(os.getppid()))
    assert directory.of_this_arbiter(UID, GID) == made
    leave()
    assert contents(home) == [str(os.getppid())]


@pytest.mark.parametrize("target", ["{victim}", "../gunicorn-victim", "gunicorn-x/../../gunicorn-victim", ".", "gunicorn-link"])
def test_a_parents_link_that_leads_elsewhere(home: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """What the link of a parent says counts only where it is the name of a directory beside it; else a new one is made."""
    (home / "gunicorn-x").mkdir()
    (home / "gunicorn-link").symlink_to(victim)
    (home / str(os.getppid())).symlink_to(target.format(victim=victim))
    monkeypatch.setenv(directory.PARENT, str(os.getppid()))
    made = directory.of_this_arbiter(UID, GID)
    assert made.resolve().parent == home.resolve()
    leave()
    assert contents(victim) == ["file"]


@pytest.mark.parametrize("dead", ["gunicorn-left", "{victim}"])
def test_what_is_cleaned_up(home: Path, victim: Path, dead: str) -> None:
    """What a killed arbiter has left is removed, and neither what its link led to elsewhere nor what has its name as a link."""
    (home / "gunicorn-left").mkdir()
    (home / "gunicorn-link").symlink_to(victim)
    (home / "999999999").symlink_to(dead.format(victim=victim))
    (home / ("9" * 30)).symlink_to("gunicorn-left")
    made = directory.of_this_arbiter(UID, GID)
    assert contents(victim) == ["file"]
    assert contents(home) == sorted(["9" * 30, "gunicorn-link", made.name, str(os.getpid())])


def test_a_lock_that_leads_elsewhere(home: Path, tmp_path: Path) -> None:
    """No file is made where a link in the lock's place leads, neither while cleaning up nor by who takes a directory over."""
    (home / "gunicorn-left").mkdir()
    (home / "gunicorn-left" / "lock").symlink_to(tmp_path / "made-by-root")
    made = directory.of_this_arbiter(UID, GID)
    assert not (tmp_path / "made-by-root").exists() and not (home / "gunicorn-left").exists()
    (made / "lock").unlink()
    (made / "lock").symlink_to(tmp_path / "made-by-root")
    leave()
    assert not (tmp_path / "made-by-root").exists()


def test_its_own_that_has_become_a_link(victim: Path) -> None:
    """An arbiter whose directory has been replaced by a link gives its workers none, and removes nothing behind the link."""
    made = directory.of_this_arbiter(UID, GID)
    (made / "lock").unlink()
    made.rmdir()
    made.symlink_to(victim)
    with pytest.raises(OSError):
        directory.of_this_arbiter(UID, GID)
    leave()
    assert contents(victim) == ["file"]


@as_root
class TestRoot:
    """The arbiter is root, its workers are somebody else."""

    def test_given_to_the_workers(self) -> None:
        """Both directories belong to the workers' user."""
        made = directory.of_this_arbiter(OTHER, OTHER)
        assert [(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in (made, made.parent)] == [
            (OTHER, OTHER, 0o700)
        ] * 2
        leave(OTHER)
        assert contents(made.parent) == []

    def test_made_anew_in_the_place_of_a_link(self, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the workers' user puts in the place of a new directory, before it is given away, isn't given away."""
        made_dir = os.mkdir

        def swapped(name: str | Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            made_dir(name, mode, dir_fd=dir_fd)
            if dir_fd is not None:
                os.rmdir(name, dir_fd=dir_fd)
                os.symlink(victim, name, dir_fd=dir_fd)

        monkeypatch.setattr(os, "mkdir", swapped)
        with pytest.raises(OSError):
            directory.of_this_arbiter(OTHER, OTHER)
        assert victim.stat().st_uid == 0 and contents(victim) == ["file"]

    def test_a_directory_of_somebody_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A parent's directory that belongs to another user than the workers is none."""
        home = tmp_path / f"sseflask-{OTHER}"
        (home / "gunicorn-roots").mkdir(parents=True)
        home.chmod(0o700)
        os.chown(home, OTHER, OTHER)
        (home / str(os.getppid())).symlink_to("gunicorn-roots")
        monkeypatch.setenv(directory.PARENT, str(os.getppid()))
        assert directory.of_this_arbiter(OTHER, OTHER).name != "gunicorn-roots"
        assert (home / "gunicorn-roots").stat().st_uid == 0 and contents(home / "gunicorn-roots") == []
