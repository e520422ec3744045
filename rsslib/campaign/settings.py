"""How a campaign runs, as one value: folders, device, how many runs at once, how long."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslib.campaign.runs import results_folder
from rsslib.errors import PRECISIONS, InputError, check_device_name, check_number, choose
from rsslib.files import check_folder, project_folder


@dataclass(frozen=True)
class Settings:
    """Where results and datasets are, and how runs are trained; nothing here changes what a run is.

    `results` is the folder for all runs, `data` the one with datasets, both by default the project's, whatever the
    current folder. `device` is auto, cpu, cuda or cuda:<n>; `precision` on CUDA is fp32, tf32 for matrix products, or
    bf16 for training under autocast. `jobs` runs train at once (None: as many as the device has room for): on a CPU
    each in a process of its own, on CUDA each in a thread with a stream of its own. `threads` is the number that one
    run on a CPU uses: a second one helps on an idle machine and costs several times the step beside another busy
    program. After `time_budget` seconds training stops between epochs, with a checkpoint to go on from (0 only checks).
    A checkpoint is also written after an epoch if the last one is `checkpoint_seconds` old. `rebuild` sets runs aside
    that are refused, and trains them anew. Without `graphs` steps on CUDA are taken one by one, at several times the
    time of CUDA graphs (None: with them; on a CPU there are none). Runs of the methods in `interference` are also
    measured (see `rsslib.interference`), once they are finished. Without `train` nothing is trained: what is stored is
    all there is.

    Raises InputError, naming the value, if one cannot be used.
    """

    results: Any = None  # str, Path or None for the project's; once made, a Path
    data: Any = None
    device: str = "auto"
    precision: str = "fp32"
    jobs: int | None = 1
    threads: int = 1
    time_budget: float | None = None
    progress: bool = True
    checkpoint_seconds: float = 20.0
    rebuild: bool = False
    graphs: bool | None = None
    interference: tuple[str, ...] = ()
    train: bool = True

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
        check_number(self.threads, "threads", 1, whole=True)
        if self.time_budget is not None:
            check_number(self.time_budget, "time_budget", 0)
        check_number(self.checkpoint_seconds, "checkpoint_seconds", 0)
        object.__setattr__(self, "interference", tuple(self.interference))
        for what in ("progress", "rebuild", "train"):
            if not isinstance(getattr(self, what), bool):
                raise InputError(f"{what} is {getattr(self, what)!r}: expected True or False")
        if not isinstance(self.graphs, bool | None):
            raise InputError(f"graphs is {self.graphs!r}: expected True, False, or None for True on CUDA")
