"""Base models that a run can start from, by the names that `tools/import_hf.py --from` takes."""

from phantom_mega.release.base_models.common import BaseModel
from phantom_mega.release.base_models.hunyuan_video import HUNYUAN_VIDEO
from phantom_mega.release.base_models.seedvr import SEEDVR_3B, SEEDVR_7B

BASE_MODELS: dict[str, BaseModel] = {
    "seedvr_3b": SEEDVR_3B,
    "seedvr_7b": SEEDVR_7B,
    "hunyuan_video": HUNYUAN_VIDEO,
}
