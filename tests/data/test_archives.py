"""Archives as they came: read as the folder in them, never written elsewhere, bounded, unpacked once."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile

import pytest
from test_layouts import opened, png, shades

from unixkd.config import DataConfig
from unixkd.data import load_data
from unixkd.data.sources import unpacked
from unixkd.errors import UserError

FILES = {
    "set/train/a/0.png": png(1),
    "set/train/b/0.PNG": png(2),
    "set/val/a/0.png": png(3),
    "set/val/b/0.png": png(4),
}
HIDDEN = {"__MACOSX/set/train/a/._0.png": b"x", "set/.DS_Store": b"x"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIXKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unpacked"


def member(name, content=b"", **fields):
    """A tar file's member and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, io.BytesIO(content)


def write_tar(file, members, mode="w"):
    with tarfile.open(file, mode) as tar:
        for info, content in members:
            tar.addfile(info, content)
    return file


def archive_of(folder, suffix, files):
    file = folder / f"photos{suffix}"
    if suffix != ".zip":
        return write_tar(file, [member(*item) for item in files.items()], f"w:{suffix[5:]}")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_an_archive_is_the_folder_in_it(suffix, tmp_path, cache):
    file = archive_of(tmp_path, suffix, FILES | HIDDEN)
    data = opened(file)
    assert shades(data) == {1: "a", 2: "b"}
    assert shades(data, "test") == {3: "a", 4: "b"}
    (folder,) = cache.glob("*/files")
    assert data.notes == (
        f"{file}: unpacked in {folder}",
        f"{file}: read from set/ in it",
        f"{file}: 2 hidden files passed over",
    )
    shutil.copytree(folder, tmp_path / "copy")
    assert (
        opened(file, in_memory=False, size=8).fingerprint
        == opened(tmp_path / "copy", size=8, in_memory=False).fingerprint
    )


def test_a_tar_file_that_ends_with_a_zip_file_is_a_tar_file(tmp_path):
    inner = archive_of(tmp_path, ".zip", {"c/9.png": png(9)}).read_bytes()
    assert shades(opened(archive_of(tmp_path, ".tar", FILES | {"more.zip": inner}))) == {1: "a", 2: "b"}


@pytest.mark.parametrize(("raw", "name"), [("Käse".encode(), "Käse"), (b"K\x84se", "Käse")])
def test_names_without_the_flag_for_utf8(raw, name, tmp_path):
    """UTF-8 where it is such, else cp437."""
    ascii_name = "x" * len(raw)
    file = archive_of(tmp_path, ".zip", {f"{ascii_name}/0.png": png(1), "b/0.png": png(2)})
    file.write_bytes(file.read_bytes().replace(ascii_name.encode(), raw))
    assert shades(opened(file)) == {1: name, 2: "b"}


def test_it_is_unpacked_once_and_anew_when_it_has_changed(tmp_path, cache, monkeypatch):
    file = archive_of(tmp_path, ".zip", FILES)
    opened(file)
    with monkeypatch.context() as patch:
        patch.setattr(unpacked, "_unpack", None)
        assert shades(opened(file)) == {1: "a", 2: "b"}
    archive_of(tmp_path, ".zip", FILES | {"set/train/a/1.png": png(9)})
    assert shades(opened(file)) == {1: "a", 9: "a", 2: "b"}
    (next(cache.iterdir()) / "part").mkdir()  # of a process that was killed
    assert shades(opened(file)) == {1: "a", 9: "a", 2: "b"}


def test_links_and_devices_are_counted_and_not_written(tmp_path, cache):
    outside = tmp_path / "outside"
    outside.mkdir()
    links = [
        member("a/link.png", type=tarfile.SYMTYPE, linkname=str(outside / "secret.png")),
        member("b/link", type=tarfile.SYMTYPE, linkname=str(outside)),
        member("a/hard.png", type=tarfile.LNKTYPE, linkname="a/0.png"),
        member("a/pipe.png", type=tarfile.FIFOTYPE),
    ]
    images = [member("a/0.png", png(1)), member("b/0.png", png(2))]
    file = write_tar(tmp_path / "links.tar", images + links)
    data = opened(file)
    assert shades(data) == {1: "a", 2: "b"}
    assert data.notes[1] == f"{file}: not unpacked: links 3, devices 1"
    assert opened(file).notes == data.notes  # also where it was unpacked before
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        for name, content in (("a/0.png", png(1)), ("b/0.png", png(2))):
            archive.writestr(name, content)
        info = zipfile.ZipInfo("b/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, str(outside))
    assert opened(tmp_path / "links.zip").notes[1].endswith("not unpacked: links 1")
    assert not any(path.is_symlink() for path in cache.rglob("*"))


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/out.png", "..\\out.png", "C:\\out.png", "a/.."]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_are_refused_and_nothing_stays(name, kind, tmp_path, cache):
    files = {"a/0.png": png(1), name: png(2)}
    file = archive_of(tmp_path, f".{kind}", files)
    with pytest.raises(UserError) as caught:
        opened(file)
    assert str(caught.value) == f"{file}: the name {name!r} leads out of the folder; nothing is unpacked"
    assert not list(tmp_path.rglob("*.png"))


def test_a_colon_in_a_name_is_no_drive(tmp_path):
    if os.name == "nt":
        pytest.skip("there it is")
    file = archive_of(tmp_path, ".tar", {"a/0.png": png(1), "b:c/1:1.png": png(2), "b:c/d:1.png": png(3)})
    assert shades(opened(file)) == {1: "a", 2: "b:c", 3: "b:c"}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a/0.png", "./a/0.png"], "'./a/0.png' comes twice, or is a file's and a folder's"),
        (["a", "a/0.png"], "'a/0.png' comes twice, or is a file's and a folder's"),
        (["a/0.png", "a"], "'a' comes twice, or is a file's and a folder's"),
        (["x" * 300], f"'{'x' * 200}' is too long for this system"),
    ],
)
def test_names_that_cannot_be_written(names, problem, tmp_path, cache):
    file = archive_of(tmp_path, ".zip", dict.fromkeys(names, b""))
    with pytest.raises(UserError) as caught:
        opened(file)
    assert str(caught.value) == f"{file}: the name {problem}; nothing is unpacked"
    assert not list(cache.glob("*/part"))


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("name", ["{}", "a/" * 200 + "{}"])
def test_empty_files_and_folders_without_end_are_refused(suffix, name, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "_LEAST", 1 << 16)
    monkeypatch.setattr(unpacked, "_RATIO", 1)
    file = archive_of(tmp_path, suffix, {name.format(i): b"" for i in range(300)})
    with pytest.raises(UserError, match=r"unpacks to more than|zip or tar file \(more than"):
        opened(file)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_bombs_are_refused_and_nothing_stays(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "_LEAST", 1 << 20)
    file = archive_of(tmp_path, suffix, {"a/0.png": png(1), "a/1.png": bytes(4 << 20)})
    with pytest.raises(UserError, match=r"unpacks to more than 1\.05 MB, refused$"):
        opened(file)
    assert not list(tmp_path.rglob("*.png"))


def test_a_header_that_claims_terabytes_is_read_no_further(tmp_path, monkeypatch):
    """What is skipped in a compressed file is read, so no further than all may take."""
    monkeypatch.setattr(unpacked, "_LEAST", 1 << 20)
    odd, _ = member("a/0.odd", type=b"Z")
    odd.size = 1 << 42
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        tar.addfile(*member("a/0.png", png(1)))
        tar.fileobj.write(odd.tobuf() + bytes(1024))
    with pytest.raises(UserError, match=r"zip or tar file \(more than 2,097,152 bytes\)"):
        opened(tmp_path / "b.tar.gz")


@pytest.mark.parametrize("fault", ["cut", "text", "password", "twice", "empty", "header"])
def test_damaged_archives_are_one_line(fault, tmp_path, cache):
    file = archive_of(
        tmp_path, ".tar.gz" if fault == "cut" else ".tar" if fault == "header" else ".zip", FILES
    )
    content = file.read_bytes()
    if fault == "cut":
        file.write_bytes(content[:-40])
    elif fault in ("text", "empty"):
        file.write_bytes(b"no archive" if fault == "text" else b"")
    elif fault == "password":
        flags = content.index(b"PK\x01\x02") + 8
        file.write_bytes(content[:6] + b"\x01" + content[7:flags] + b"\x01" + content[flags + 1 :])
    elif fault == "header":
        file.write_bytes(content[:1024] + b"\xff" * 512 + content[1536:])
    else:
        with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("set/val/a/0.png", png(5))
    with pytest.raises(UserError) as caught:
        opened(file)
    problem = (
        "the name 'set/val/a/0.png' comes twice" if fault == "twice" else "cannot be unpacked as a zip or tar"
    )
    assert str(caught.value).startswith(f"{file}: {problem}")
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*/files"))
    assert not list(cache.glob("*/part"))


def test_no_room(tmp_path, monkeypatch):
    file = archive_of(tmp_path, ".zip", FILES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(UserError, match="unpacks to more than 100 bytes, refused"):
        load_data(DataConfig(f"folder:{file}"))
