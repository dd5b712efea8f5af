"""The paper's claims as comparisons of conditions. A claim names the sign that it expects; the data decide.

Sections and tables are those of Phantom (arXiv 2502.11079). Numbers of the paper stand beside ours where it gives any;
its metrics are other ones (CLIP-I, DINO-I, human judgement), so signs can be compared, sizes cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

from phantom_mega.reproduction.arms import Condition

MORE, LESS = 1, -1


@dataclass(frozen=True)
class Claim:
    """`metric` of condition `first` is more (or less) than that of `second`.

    Attributes:
        text: in words.
        metric: of `score.METRICS`.
        first, second: names of conditions.
        sign: `MORE` or `LESS`.
        source: where the paper says so; "" for a check of our own.
    """

    text: str
    metric: str
    first: str
    second: str
    sign: int = MORE
    source: str = ""


@dataclass(frozen=True)
class Study:
    """One command of launchers/reproduce.py.

    Attributes:
        name: the command.
        title: of its report.
        about: what is compared, in a sentence or two.
        conditions: rows of the table, in order.
        metrics: columns.
        claims: what should hold.
        paper: what the paper reports, in words.
    """

    name: str
    title: str
    about: str
    conditions: tuple[Condition, ...]
    metrics: tuple[str, ...]
    claims: tuple[Claim, ...]
    paper: str


BASE = Condition("base", "VAE and CLIP")
UNTRAINED = Condition("untrained", "the same model, untrained", trained=False)
SHUFFLED = Condition("shuffled", "references of another case", references="shuffled")
PASTED = Condition("pasted", "copy-paste of the reference", references="pasted")
COLUMNS = ("identity", "semantics", "detail", "retrieval", "background", "motion", "prompt", "copy_paste")

ABLATION = Study(
    "ablation",
    "Which encoder carries what (Table 3), and does the model beat trivial ones?",
    "Three trainings: references by VAE latents and CLIP features, by CLIP alone, by the VAE alone.",
    (
        BASE,
        Condition("no_vae", "CLIP alone", arm="no_vae"),
        Condition("no_clip", "VAE alone", arm="no_clip"),
        UNTRAINED,
        SHUFFLED,
        PASTED,
    ),
    COLUMNS,
    (
        Claim("the VAE carries detail: without it, detail falls", "detail", "base", "no_vae", MORE, "Table 3"),
        Claim("the VAE carries identity: without it, retrieval falls", "retrieval", "base", "no_vae", MORE, "Table 3"),
        Claim("CLIP lifts semantics: without it, they fall", "semantics", "base", "no_clip", MORE, "Table 3"),
        Claim("CLIP lifts prompt following: without it, that falls", "prompt", "base", "no_clip", MORE, "Table 3"),
        Claim("trained beats untrained at identity", "identity", "base", "untrained"),
        Claim("its identity comes from the references: shuffled ones lose it", "identity", "base", "shuffled"),
        Claim("it follows the prompt where copy-paste cannot", "prompt", "base", "pasted"),
        Claim("it repeats less of the reference's picture than copy-paste", "copy_paste", "base", "pasted", LESS),
    ),
    "The paper finds that VAE latents alone keep details but follow the text less, that CLIP features alone keep the "
    "meaning and lose details, and that both together are best.",
)
COPY_PASTE = Study(
    "copy_paste",
    "Cross pairs against in pairs",
    "References from another clip of the subject, or cut from the training clip itself; both are asked for held-out "
    "subjects with references from elsewhere.",
    (BASE, Condition("in_pair", "trained on in pairs", arm="in_pair"), PASTED),
    COLUMNS,
    (
        Claim("cross pairs lower copy-paste", "copy_paste", "base", "in_pair", LESS, "the paper"),
        Claim("cross pairs raise prompt following", "prompt", "base", "in_pair", MORE, "the paper"),
    ),
    "The paper: training on in pairs leaks the reference's pose, light and background into the video; cross pairs do "
    "not, and videos follow the text better.",
)
_PAIR_COLUMNS = ("success", "identity", "retrieval", "both_present", "swapped", "prompt", "copy_paste")
CONFUSION = Study(
    "confusion",
    "Do distinct descriptions keep two subjects apart (Table 4)?",
    "One model, trained on captions of both kinds, is asked for the same scenes in words that tell the two subjects "
    "apart, and in words that do not.",
    (
        Condition("pair_distinct", "distinct descriptions", arm="pair", style="distinct"),
        Condition("pair_vague", "vague descriptions", arm="pair", style="vague"),
    ),
    _PAIR_COLUMNS,
    (
        Claim("distinct descriptions raise success", "success", "pair_distinct", "pair_vague", MORE, "Table 4"),
        Claim("distinct descriptions swap subjects less", "swapped", "pair_distinct", "pair_vague", LESS, "Table 4"),
    ),
    "The paper: the share of videos without confusion rises from 65% to 95% when a rephraser tells the subjects apart.",
)
MULTI_SUBJECT = Study(
    "multi_subject",
    "Two subjects from two references",
    "The model of `confusion` beside trivial ones, on held-out pairs of subjects, described so that they differ.",
    (
        Condition("pair_distinct", "two references", arm="pair", style="distinct"),
        Condition("pair_untrained", "untrained", arm="pair", style="distinct", trained=False),
        Condition("pair_shuffled", "references of another case", arm="pair", style="distinct", references="shuffled"),
        Condition("pair_pasted", "copy-paste of the references", arm="pair", style="distinct", references="pasted"),
    ),
    _PAIR_COLUMNS,
    (
        Claim("trained beats untrained", "identity", "pair_distinct", "pair_untrained"),
        Claim("identities come from the references", "identity", "pair_distinct", "pair_shuffled"),
        Claim("it follows the prompt where copy-paste cannot", "prompt", "pair_distinct", "pair_pasted"),
    ),
    "The paper reports multi-subject consistency ahead of commercial systems (Table 2); there is no such peer here.",
)
VAE_DROPOUT = Study(
    "vae_dropout",
    "Dropout of VAE references while training",
    "Probability that a sample trains on CLIP features alone.",
    (
        Condition("vae_dropout_0", "0", arm="vae_dropout_0"),
        BASE,
        Condition("vae_dropout_07", "0.7 (the paper's)", arm="vae_dropout_07"),
    ),
    COLUMNS,
    (
        Claim("dropout lowers copy-paste", "copy_paste", "vae_dropout_07", "vae_dropout_0", LESS, "the paper"),
        Claim("dropout raises prompt following", "prompt", "vae_dropout_07", "vae_dropout_0", MORE, "the paper"),
    ),
    "The paper trains with 0.7, to balance the VAE against CLIP; it gives no table.",
)
INJECTION = Study(
    "injection",
    "How references enter the windows",
    "`displace` (the paper, read literally), `append`, and attention over the whole clip.",
    (
        BASE,
        Condition("append", "append", arm="append"),
        Condition("full_attention", "full attention", arm="full_attention"),
    ),
    COLUMNS,
    (
        Claim("windows keep the identity that full attention gives", "identity", "base", "full_attention"),
        Claim("displace keeps the identity that append gives", "identity", "base", "append"),
    ),
    "The paper uses windows for their cost and does not compare; no sign is claimed by it.",
)
WINDOW_SHIFT = Study(
    "window_shift",
    "Windows that shift in every other layer",
    "Without shifts no layer sees over a window's border.",
    (BASE, Condition("no_shift", "never shifted", arm="no_shift")),
    ("identity", "motion", "prompt", "steadiness", "copy_paste"),
    (
        Claim("shifts make videos steadier over borders of windows", "steadiness", "base", "no_shift"),
        Claim("shifts help motion", "motion", "base", "no_shift"),
    ),
    "The paper takes shifted windows from its base model and does not ablate them.",
)
_SWEEP = tuple(
    Condition(f"guidance_{image:g}_{text:g}", f"w_I {image:g}, w_TI {text:g}", image_scale=image, text_scale=text)
    for image, text in ((1.0, 1.0), (1.0, 3.0), (6.0, 3.0), (3.0, 7.5))
)
GUIDANCE = Study(
    "guidance",
    "Guidance by references and by the prompt",
    "The same models, sampled at other scales; the other studies use w_I 3 and w_TI 3, the paper 3 and 7.5.",
    (BASE, *_SWEEP),
    COLUMNS,
    (
        Claim("text guidance raises prompt following", "prompt", "base", "guidance_1_1"),
        Claim("image guidance raises identity", "identity", "base", "guidance_1_3"),
    ),
    "The paper samples at 3 and 7.5 and gives no sweep.",
)
STUDIES = {
    study.name: study
    for study in (
        ABLATION, COPY_PASTE, CONFUSION, MULTI_SUBJECT, VAE_DROPOUT, INJECTION, WINDOW_SHIFT, GUIDANCE,
    )
}  # fmt: skip
