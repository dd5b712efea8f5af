"""docs/base_models.md shows what the code does: its tables are made here, from the released sizes.

`python -m tests.release.base_models.test_docs` writes them anew.
"""

import re
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel

from phantom_mega.release import importing
from phantom_mega.release.base_models import BASE_MODELS
from phantom_mega.release.base_models.common import Options, Source
from tests.release.base_models.helpers import Names, released

PAGE = Path(__file__).resolve().parents[3] / "docs/base_models.md"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def source_of(name):
    """Names and shapes of the released file."""
    if name != "hunyuan_video":
        return Source(released(name.removeprefix("seedvr_")), {})
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel()
    config = {"rope_axes_dim": [16, 56, 56], "rope_theta": 256.0}
    return Source(Names({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}), config)


def tables(name):
    """Differences, what becomes of the source's tensors, and what is new, in Markdown. Blocks are written as `*`."""
    source, base = source_of(name), BASE_MODELS[name]
    run = importing.base_config(base, source, None, [])
    plan = base.plan(source, run, Options())

    def pattern(tensor):
        return NUMBER.sub("*", tensor)

    becomes, new = {}, {}
    for target, rule in plan.rules.items():
        if not rule.sources:
            new.setdefault(pattern(target), rule.how.removeprefix("new "))
        for tensor in rule.sources:
            becomes.setdefault(pattern(tensor), {})[pattern(target)] = rule.how
    for tensor, why in plan.unused.items():
        becomes.setdefault(pattern(tensor), {})[""] = why
    lines = [f"- {note}" for note in plan.notes] + ["", "| source | becomes | how |", "|---|---|---|"]
    for tensor in dict.fromkeys(map(pattern, source.weights.shapes)):
        for target, how in becomes[tensor].items():
            lines.append(f"| `{tensor}` | {f'`{target}`' if target else 'not used'} | {how} |")
    lines += [f"| `{tensor}` | not used, in part | {why} |" for tensor, why in plan.partly.items()]
    lines += [
        "",
        "| new tensor | starts as |",
        "|---|---|",
        *(f"| `{target}` | {how} |" for target, how in new.items()),
    ]
    return "\n".join(lines)


def page_with(name, text, page):
    """The page with the tables of one base model put between its two comments."""
    start, end = f"<!-- tables of {name} -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = page.partition(start)
    assert rest and end in rest, f"{PAGE} has no place for the tables of {name}"
    return before + start + text + end + rest.partition(end)[2]


@pytest.mark.parametrize("name", BASE_MODELS)
def test_the_tables_of_the_page_are_those_of_the_code(name):
    page = PAGE.read_text()
    assert page_with(name, tables(name), page) == page


if __name__ == "__main__":
    text = PAGE.read_text()
    for model in BASE_MODELS:
        text = page_with(model, tables(model), text)
    PAGE.write_text(text)
