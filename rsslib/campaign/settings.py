"""How a campaign runs, as one value: folders, device, how many runs at once, how long."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslib.campaign.runs import results_folder
from rsslib.errors import PRECISIONS, InputError, check_device_name, check_number, choose
from rsslib.files import check_folder, project_folder


@dataclass(frozen=True)
class Settings:
    """Where results and datasets are, and how runs are trained; nothing here changes what a run is.

    Raises InputError, naming the value, if one cannot be used.
    """

    results: Any = None  #: the folder for all runs: str, Path or None for the project's; once made, a Path
    data: Any = None  #: likewise the folder with datasets
    device: str = "auto"  #: or cpu, cuda, cuda:<n>
    precision: str = "fp32"  #: on CUDA also tf32 for matrix products, or bf16 for training under autocast
    jobs: int | None = 1  #: runs at once, on CUDA in threads, else in processes; None: what the device has room for
    threads: int = 1  #: of a run on a CPU; a second one helps on an idle machine, on a busy one it slows the steps
    time_budget: float | None = None  #: seconds until it stops, between epochs or subnets, and keeps all; 0 only checks
    progress: bool = True
    checkpoint_seconds: float = 20.0  #: at least, from one checkpoint to the next
    rebuild: bool = False  #: set aside what is refused, and train it anew
    graphs: bool | None = None  #: steps on CUDA as CUDA graphs (None: yes), several times as fast as one by one
    interference: tuple[str, ...] = ()  #: methods whose finished runs are also measured; see `rsslib.interference`
    train: bool = True  #: or nothing is trained, and what is stored is all there is
    deadline: float = math.inf  # as of `time.time`; `complete` sets it from the time budget

    def graphs_on(self, kind: str) -> bool:
        """Whether steps are taken as CUDA graphs on a device of this kind."""
        return kind == "cuda" and self.graphs is not False

    def __post_init__(self):
        for what, default in (("results", results_folder()), ("data", project_folder() / "data")):
            folder = default if getattr(self, what) is None else getattr(self, what)
            check_folder(folder, what)
            object.__setattr__(self, what, Path(folder))
        check_device_name(self.device)
        choose(self.precision, PRECISIONS, "precision")
        if self.jobs is not None:
            check_number(self.jobs, "jobs", 1, whole=True)
        check_number(self.threads, "threads", 1, os.cpu_count(), whole=True)
        if self.time_budget is not None:
            check_number(self.time_budget, "time_budget", 0)
        check_number(self.checkpoint_seconds, "checkpoint_seconds", 0)
        if isinstance(self.interference, str) or not isinstance(self.interference, Sequence):
            raise InputError(f"interference is {self.interference!r}: expected a list of names of methods")
        object.__setattr__(self, "interference", tuple(self.interference))
        for what in ("progress", "rebuild", "train"):
            if not isinstance(getattr(self, what), bool):
                raise InputError(f"{what} is {getattr(self, what)!r}: expected True or False")
        if not isinstance(self.graphs, bool | None):
            raise InputError(f"graphs is {self.graphs!r}: expected True, False, or None for True on CUDA")
