"""Photographs of faces for the tests: those of the source distribution `face-recognition`, fetched once, verified."""

import io

from PIL import Image

from phantom_mega.data.packages import Package, read

PACKAGE = Package(
    "face-recognition==1.3.0",
    "face_recognition-1.3.0.tar.gz",
    "5e5efdd1686aa566af0d3cc1313b131e4b197657a8ffd03669e6d3fad92705ec",
)
_FOLDER = "face_recognition-1.3.0/tests/test_images"


def photo(name: str, side: int = 512) -> Image.Image:
    """`obama`, `obama2`, `obama3`, `biden`, `obama_partial_face`: upright RGB, at most `side` pixels on a side."""
    image = Image.open(io.BytesIO(read(PACKAGE, f"{_FOLDER}/{name}.jpg"))).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    """As a crop holds it."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
