import multiprocessing
import pickle
import stat
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.data import archive as archive_module
from vlmbench.data.archive import ZipArchive, is_unsafe, read_image_file
from vlmbench.errors import InputError, SampleError

HOSTILE = [
    "../evil.jpg",
    "val2014/../../evil.jpg",
    "/etc/evil.jpg",
    "..\\evil.jpg",
    "C:\\evil.jpg",
    "C:evil.jpg",
    "\\\\host\\share\\evil.jpg",
    "\\evil.jpg",
    "a/..",
]


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return ZipArchive(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_outside_are_refused(tmp_path, name):
    archive = make_zip(tmp_path / "v.zip", {"val2014/a.jpg": b"a", name: b"evil"})
    with pytest.raises(InputError, match="is refused"):
        archive.read_image("a.jpg")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["v.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("val2014/a.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="is refused"):
        ZipArchive(tmp_path / "v.zip").find("a.jpg")


@given(parts=st.lists(st.text(st.characters(codec="ascii", exclude_characters="/\\:\0"), min_size=1), min_size=1))
def test_ordinary_names_are_safe_and_dots_are_not(parts):
    name = "/".join(parts)
    assert is_unsafe(name) == (".." in parts)
    assert is_unsafe("/" + name)
    assert is_unsafe(name + "/../x")


def test_members_are_read_in_place_and_nothing_is_extracted(tmp_path):
    archive = make_zip(tmp_path / "v.zip", {"val2014/": b"", "val2014/a.jpg": b"bytes", "b.jpg": b"more"})
    assert archive.read_image("a.jpg") == b"bytes"
    assert archive.read_image("b.jpg") == b"more"
    assert archive.find("val2014") is None
    assert [p.name for p in tmp_path.rglob("*")] == ["v.zip"]
    with pytest.raises(SampleError, match=r"c\.jpg is not in"):
        archive.read_image("c.jpg")


def test_opened_once_also_across_pickles(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "v.zip", {f"{i}.jpg": b"x" for i in range(20)})
    opened = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: opened.append(path) or real(path))
    for i in range(20):
        archive.read_image(f"{i}.jpg")
    assert len(opened) == 1
    copy = pickle.loads(pickle.dumps(archive))
    assert copy.read_image("3.jpg") == b"x"
    assert len(opened) == 2


def _read_all(archive, names, bad):
    for name in names * 5:
        if archive.read_image(name) != name.encode() * 5000:
            bad.value += 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads: what is tested here
def test_forked_readers_do_not_disturb_each_other(tmp_path):
    names = [f"{i:03d}.jpg" for i in range(40)]
    archive = make_zip(tmp_path / "v.zip", {name: name.encode() * 5000 for name in names})
    archive.read_image(names[0])  # open before the fork
    context = multiprocessing.get_context("fork")
    bad = context.Value("i", 0)
    workers = [context.Process(target=_read_all, args=(archive, names, bad)) for _ in range(2)]
    for worker in workers:
        worker.start()
    _read_all(archive, names, bad)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert bad.value == 0


def test_no_zip_and_a_cut_zip_are_named(tmp_path):
    path = tmp_path / "v.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"v\.zip cannot be read.*download it again"):
        ZipArchive(path).find("a.jpg")
    make_zip(path, {"a.jpg": b"x" * 1000})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read"):
        ZipArchive(path).find("a.jpg")


def test_a_damaged_member_is_one_bad_sample(tmp_path):
    path = tmp_path / "v.zip"
    archive = make_zip(path, {"a.jpg": b"A" * 500, "b.jpg": b"B" * 500})
    path.write_bytes(path.read_bytes().replace(b"A" * 500, b"A" * 499 + b"Z"))
    with pytest.raises(SampleError, match=r"a\.jpg cannot be read: Bad CRC"):
        archive.read_image("a.jpg")
    assert archive.read_image("b.jpg") == b"B" * 500


def test_a_damaged_deflate_stream_is_one_bad_sample(tmp_path):
    path = tmp_path / "v.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(range(256)) * 50)
    data = bytearray(path.read_bytes())
    data[40:60] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(SampleError, match="cannot be read"):
        ZipArchive(path).read_image("a.jpg")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_IMAGE_BYTES", 1000)
    archive = make_zip(tmp_path / "v.zip", {"a.jpg": b"x" * 1001})
    with pytest.raises(SampleError, match="unpacks to 1001 bytes"):
        archive.read_image("a.jpg")
    (tmp_path / "a.jpg").write_bytes(b"x" * 1001)
    with pytest.raises(SampleError, match="has 1001 bytes"):
        read_image_file(tmp_path / "a.jpg")


def test_a_missing_file_is_one_bad_sample(tmp_path):
    with pytest.raises(SampleError, match=r"gone\.jpg cannot be read: No such file"):
        read_image_file(tmp_path / "gone.jpg")
    with pytest.raises(SampleError, match="cannot be read"):
        read_image_file(tmp_path)
