"""Zero-shot detectors of transformers (Grounding DINO, OWL-ViT, OWLv2): boxes of phrases in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from phantom_mega.curation.models import open_pretrained

# (number of the phrase, score, box in pixels)
Found = list[tuple[int, float, list[float]]]


def open_zero_shot(
    name: str, threshold: float, what: str = "detections.detector_model", device: Any = None
) -> Callable[[Image.Image, Sequence[str]], Found]:
    """The function of a picture and phrases.

    Args:
        name: of the model on the hub, or its folder.
        threshold: score at least.
        what: the setting that names it, for messages.
        device: where it computes; a GPU if there is one.

    Raises:
        UserError: it cannot be loaded.
    """
    import torch

    processor, model = open_pretrained(what, name, "AutoModelForZeroShotObjectDetection", device)
    # OWL looks at a picture once for all phrases and says which it found. The others see one text and answer with
    # pieces of it, which may belong to any phrase: they get one phrase at a time.
    together = model.config.model_type.startswith("owl")

    @torch.no_grad()
    def find(image: Image.Image, phrases: Sequence[str]) -> Found:
        found: Found = []
        numbers = range(len(phrases))
        for group in [list(numbers)] if together else [[number] for number in numbers]:
            # Grounding DINO parts its phrases by full stops, and its processor takes none within a phrase.
            texts = [[" ".join(phrases[number].lower().replace(".", " ").split()) for number in group]]
            inputs = processor(images=image, text=texts, return_tensors="pt", truncation=True).to(model.device)
            result = processor.post_process_grounded_object_detection(
                model(**inputs), threshold=threshold, target_sizes=[(image.height, image.width)], text_labels=texts
            )[0]
            labels = result["labels"].tolist() if together else [0] * len(result["scores"])
            rows = zip(labels, result["scores"].tolist(), result["boxes"].tolist(), strict=True)
            found += [(group[label], score, box) for label, score, box in rows]
        return found

    return find
