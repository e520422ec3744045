"""Fine-tune a subnet: train it alone for more epochs, starting from its shared weights."""

from dataclasses import dataclass, replace
from typing import Annotated

from rsslib.data.dataset import Dataset
from rsslib.device import use_threads
from rsslib.errors import Count, Natural, checked
from rsslib.methods import LEARNING_RATE, Method, one_stage
from rsslib.space import Arch
from rsslib.supernet import SuperNet
from rsslib.trainer import start, train


@dataclass(frozen=True)
class Only:
    """Sample the same subnet every time."""

    arch: Arch

    def subnets(self, space, rng, epoch, epochs, steps):
        return [(self.arch,)]


@checked
@use_threads(1)
def finetune(
    supernet: SuperNet,
    arch: Arch,
    images: Dataset,
    epochs: Count = 10,
    learning_rate: Annotated[float, 0, None] = LEARNING_RATE,
    method: Method | None = None,
    seed: Natural = 0,
    progress: bool = True,
) -> SuperNet:
    """Return a copy of a supernet whose subnet `arch` was trained alone for `epochs` more epochs, with a cosine.

    `method` is the method that trained the supernet. Its batch size, augmentation and other fields are kept, but not
    its stages. Use no other subnet of the copy. Raises InputError for images that do not fit the supernet.
    """
    tuned = one_stage("fine-tune", epochs, Only(arch), learning_rate=learning_rate, dropout=supernet.dropout.p)
    if method is not None:
        tuned = replace(method, name=tuned.name, stages=tuned.stages, teacher=None, groups=1)
    state = start(supernet.space, tuned, seed, images.device)
    state.supernet.load_state_dict(supernet.state_dict())
    return train(state, tuned, images, seed, progress=progress).supernet.eval()
