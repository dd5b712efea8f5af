"""Photographs of faces for the tests: those of the source distribution `face-recognition`, fetched once, verified."""

import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from phantom_mega.data.samples import cache_folder

PACKAGE, FILE = "face-recognition==1.3.0", "face_recognition-1.3.0.tar.gz"
SHA256 = "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec"
_FOLDER = "face_recognition-1.3.0/tests/test_images"


@functools.cache
def archive() -> Path:
    """The source distribution; skips the test where it cannot be had."""
    path = cache_folder() / FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", folder]
            done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"cannot fetch {PACKAGE}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            os.replace(Path(folder) / FILE, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, f"{path} is another file; remove it"
    return path


def photo(name: str, side: int = 512) -> Image.Image:
    """`obama`, `obama2`, `obama3`, `biden`, `obama_partial_face`: upright RGB, at most `side` pixels on a side."""
    with tarfile.open(archive()) as tar:
        data = tar.extractfile(f"{_FOLDER}/{name}.jpg").read()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    """As a crop holds it."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
