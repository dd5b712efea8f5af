"""Hypothesis strategies shared by the tests of the mathematics: samples, packs and window settings of small size."""

from hypothesis import strategies as st

from phantom_mega.geometry import SampleShape
from phantom_mega.windows import WindowSpec


def pack_strategy(max_frames: int, max_side: int):
    """Lists of 1 to 3 samples with 0 to 4 references."""
    shapes = st.builds(
        SampleShape,
        frames=st.integers(1, max_frames),
        height=st.integers(1, max_side),
        width=st.integers(1, max_side),
        references=st.integers(0, 4),
        text_tokens=st.integers(1, 5),
        clip_tokens=st.integers(1, 3),
    )
    return st.lists(shapes, min_size=1, max_size=3)


packs = pack_strategy(max_frames=24, max_side=5)
small_packs = pack_strategy(max_frames=14, max_side=2)  # for dense attention, quadratic in tokens
window_specs = st.builds(
    WindowSpec,
    window_frames=st.sampled_from([0, 5, 6, 9]),
    window_height=st.sampled_from([0, 1, 15, 20]),
    window_width=st.sampled_from([0, 1, 20, 40]),
    window_shift=st.sampled_from(["alternate", "none"]),
    reference_injection=st.sampled_from(["displace", "append"]),
)
