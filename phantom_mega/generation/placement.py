"""Which rank generates what: whole cases are spread over groups of ranks; the ranks of a group share one video."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from phantom_mega.errors import UserError


@dataclass(frozen=True)
class Placement:
    """This process among those of torchrun or srun; alone without them.

    Attributes:
        rank, world: of all processes.
        local_rank: on this node; its GPU.
        ranks_per_video: size of a group.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    ranks_per_video: int = 1

    @classmethod
    def from_environment(cls, ranks_per_video: int = 1) -> Placement:
        """Read torchrun's variables, else Slurm's.

        Raises:
            UserError: the processes cannot be divided into such groups.
        """
        env = os.environ
        if "WORLD_SIZE" in env:
            found = [int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        elif "SLURM_STEP_ID" in env and int(env.get("SLURM_NTASKS", "1")) > 1:
            found = [int(env[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")]
        else:
            found = [0, 1, 0]
        world = found[1]
        if ranks_per_video < 1 or world % ranks_per_video:
            fit = [size for size in range(1, world + 1) if world % size == 0]
            near = min(fit, key=lambda size: abs(size - ranks_per_video))
            raise UserError(f"--ranks-per-video {ranks_per_video} does not divide {world} processes; try {near}")
        return cls(*found, ranks_per_video)

    @property
    def groups(self) -> int:
        """Groups of ranks, each with a video of its own."""
        return self.world // self.ranks_per_video

    @property
    def group(self) -> int:
        """Number of this rank's group."""
        return self.rank // self.ranks_per_video

    @property
    def leads(self) -> bool:
        """Whether this rank writes its group's files."""
        return self.rank % self.ranks_per_video == 0

    def device(self, name: str = "auto") -> torch.device:
        """`cpu`, `cuda` (this rank's GPU), or `auto`: a GPU where there is one.

        Raises:
            UserError: an unknown name, or there is no GPU for this rank.
        """
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(f"--device {name} is unknown; use auto, cpu or cuda")
        count = torch.cuda.device_count()
        if name == "cpu" or (name == "auto" and not count):
            return torch.device("cpu")
        if self.local_rank >= count:
            raise UserError(f"process {self.rank} has no GPU: {count} GPU(s) on this node, --device cpu runs without")
        return torch.device("cuda", self.local_rank)

    def open_group(self, device: torch.device) -> dist.ProcessGroup:
        """Join the process group of this rank's video; all processes call it.

        Raises:
            UserError: the processes were not started by torchrun, so that nobody tells where they meet.
        """
        if "MASTER_ADDR" not in os.environ:
            raise UserError("--ranks-per-video above 1 needs torchrun (or launchers/run.sh)")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", rank=self.rank, world_size=self.world,
            timeout=datetime.timedelta(minutes=30),
        )  # fmt: skip
        size, own = self.ranks_per_video, None
        for start in range(0, self.world, size):
            group = dist.new_group(list(range(start, start + size)))
            own = group if start == self.group * size else own
        return own
