"""Settings of the curation: a section for each stage, next to the stage's code, and one for the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from phantom_mega.config_io import Recipes
from phantom_mega.curation.measures import MeasureSettings
from phantom_mega.curation.selection import SelectionSettings
from phantom_mega.curation.shots import ShotSettings
from phantom_mega.curation.videos import VideoSettings


@dataclass
class EngineSettings:
    """How the work is shared out."""

    parts: int = 64
    """Files of each table: the pieces of work that workers take and that a killed run keeps. It cannot change later."""
    num_cpus: int = 0
    """CPUs to use on this machine; 0 takes all. Without meaning on a Ray cluster."""


@dataclass
class CurationConfig:
    """All of it; recipes are YAML files in `recipes/`."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    videos: VideoSettings = field(default_factory=VideoSettings)
    shots: ShotSettings = field(default_factory=ShotSettings)
    measures: MeasureSettings = field(default_factory=MeasureSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)


CURATION = Recipes(CurationConfig, Path(__file__).parent / "recipes")
