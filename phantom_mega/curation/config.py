"""Settings of the curation: a section for each stage, next to the stage's code, and one for the run.

Each kind of input has a configuration of its own, for it has stages of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from phantom_mega.config_io import Recipes
from phantom_mega.curation.boxes import BoxSettings
from phantom_mega.curation.captions import CaptionSettings
from phantom_mega.curation.crops import CropSettings
from phantom_mega.curation.detections import DetectionSettings
from phantom_mega.curation.embeddings import EmbeddingSettings
from phantom_mega.curation.faces import FaceMatchSettings, FaceSettings
from phantom_mega.curation.image_pairs import ImagePairSettings
from phantom_mega.curation.measures import MeasureSettings
from phantom_mega.curation.neighbours import NeighbourSettings
from phantom_mega.curation.pairs import PairSettings
from phantom_mega.curation.readers.opens2v import OpenS2VSettings
from phantom_mega.curation.readers.phantom_data import PhantomDataSettings
from phantom_mega.curation.samples import SampleSettings
from phantom_mega.curation.selection import SelectionSettings
from phantom_mega.curation.shots import ShotSettings
from phantom_mega.curation.subjects import SubjectSettings
from phantom_mega.curation.transcode import TranscodeSettings
from phantom_mega.curation.videos import VideoSettings
from phantom_mega.curation.write import WriteSettings

_RECIPES = Path(__file__).parent / "recipes"


@dataclass
class EngineSettings:
    """How the work is shared out."""

    parts: int = 64
    """Files of each table: the pieces of work that workers take and that a killed run keeps. It cannot change later."""
    num_cpus: int = 0
    """CPUs to use on this machine; 0 takes all. Without meaning on a Ray cluster."""


@dataclass
class CurationConfig:
    """From raw videos; recipes are YAML files in `recipes/`."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    videos: VideoSettings = field(default_factory=VideoSettings)
    shots: ShotSettings = field(default_factory=ShotSettings)
    measures: MeasureSettings = field(default_factory=MeasureSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    subjects: SubjectSettings = field(default_factory=SubjectSettings)
    detections: DetectionSettings = field(default_factory=DetectionSettings)
    boxes: BoxSettings = field(default_factory=BoxSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    embeddings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    faces: FaceSettings = field(default_factory=FaceSettings)
    face_matching: FaceMatchSettings = field(default_factory=FaceMatchSettings)
    neighbours: NeighbourSettings = field(default_factory=NeighbourSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    transcode: TranscodeSettings = field(default_factory=TranscodeSettings)
    write: WriteSettings = field(default_factory=WriteSettings)


@dataclass
class PhantomDataConfig:
    """From Phantom-Data's annotations."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    phantom_data: PhantomDataSettings = field(default_factory=PhantomDataSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    transcode: TranscodeSettings = field(default_factory=TranscodeSettings)
    write: WriteSettings = field(default_factory=WriteSettings)


@dataclass
class OpenS2VConfig:
    """From OpenS2V-5M's annotations."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    opens2v: OpenS2VSettings = field(default_factory=OpenS2VSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    transcode: TranscodeSettings = field(default_factory=TranscodeSettings)
    write: WriteSettings = field(default_factory=WriteSettings)


@dataclass
class ImagePairConfig:
    """From pairs of images."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    image_pairs: ImagePairSettings = field(default_factory=ImagePairSettings)
    write: WriteSettings = field(default_factory=WriteSettings)


CURATION = Recipes(CurationConfig, _RECIPES)
PHANTOM_DATA = Recipes(PhantomDataConfig, _RECIPES / "readers")
OPENS2V = Recipes(OpenS2VConfig, _RECIPES / "readers")
IMAGE_PAIRS = Recipes(ImagePairConfig, _RECIPES / "readers")
