"""Put the paper's claims to the test in a procedural world where identity, motion and scene are known exactly.

Examples:
  python launchers/reproduce.py ablation                        # Table 3, on a GPU if there is one
  python launchers/reproduce.py copy_paste --device cpu         # cross pairs against in pairs, on two cores
  python launchers/reproduce.py confusion --output runs/toy     # Table 4
  python launchers/reproduce.py ablation copy_paste             # two of them, each training once
  python launchers/reproduce.py all                             # every study
  python launchers/reproduce.py ablation --report-only          # the tables of what has been measured

A study makes data, VAE, CLIP and judge of the toy world, trains its arms with three seeds by launchers/train.py,
samples held-out cases by the pipeline, lets the judge read them and writes OUTPUT/reports/STUDY.md and .png. Run it
again after an interruption: it goes on. Studies in one folder share trainings. Exit code: 0 done, 2 bad input.
"""

import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phantom_mega.errors import UserError
from phantom_mega.reproduction.scale import SCALES
from phantom_mega.reproduction.studies import STUDIES

OUTPUT = Path("runs/reproduce")


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "study",
        nargs="+",
        choices=(*STUDIES, "all"),
        help="; ".join(f"{study.name}: {study.title}" for study in STUDIES.values()),
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    add("--output", type=Path, help=f"folder of everything; default: {OUTPUT}_cpu or {OUTPUT}_gpu")
    add("--scale", choices=tuple(SCALES), help="how much is trained; default: that of the device")
    add("--report-only", action="store_true", help="train and sample nothing")
    return parser


def main() -> int:
    """Parse, run, report; returns the exit code."""
    args = build_parser().parse_args()
    import torch  # late: --help answers at once

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU; use --device cpu")
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    name = args.scale or {"cpu": "cpu", "cuda": "gpu"}[device]
    torch.set_num_threads(SCALES[name].threads * SCALES[name].processes if device == "cpu" else torch.get_num_threads())

    from phantom_mega.reproduction.assets import Workplace
    from phantom_mega.reproduction.report import write_report
    from phantom_mega.reproduction.run import measure_study, prepare

    place = Workplace((args.output or Path(f"{OUTPUT}_{name}")).resolve(), SCALES[name], device)
    command = shlex.join(["python", "launchers/reproduce.py", *sys.argv[1:]])
    where = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    studies = [STUDIES[name] for name in (STUDIES if "all" in args.study else dict.fromkeys(args.study))]
    if not args.report_only:
        prepare(studies, place)
    for study in studies:
        if not args.report_only:
            measure_study(study, place)
        print(write_report(study, place, command, where), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
