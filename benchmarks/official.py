"""Other ways of training, for comparisons; needs `ofa`, torchvision and Pillow."""

import numpy as np
import torch
from common import DEVICE, SPACE, timed
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3  # of the tests' packages
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from rsslib.data.augmentation import augment, draw_augmentation
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from rsslib.methods import BATCH_SIZE
from rsslib.samplers import Step
from rsslib.space import Arch
from rsslib.steps import MOMENTUM, WEIGHT_DECAY
from rsslib.supernet import SuperNet

PIL = transforms.Compose(
    [
        transforms.RandomResizedCrop(32, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=32 / 255, saturation=0.5),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


class Peer:
    """A network trained as usual in PyTorch, on 64 images by the usual PIL transforms or by this project's."""

    def __init__(self, net: nn.Module, memory_format: torch.memory_format, pil: bool = True):
        self.net, self.memory_format, self.pil = net.to(DEVICE, memory_format=memory_format), memory_format, pil
        named = list(self.net.named_parameters())
        plain = [p for name, p in named if "bn" in name or name.endswith("bias")]
        decayed = [p for name, p in named if not ("bn" in name or name.endswith("bias"))]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}]
        self.optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=MOMENTUM, nesterov=True)
        self.images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        self.labels = torch.randint(0, 100, (BATCH_SIZE,), device=DEVICE)
        self.teacher: nn.Module | None = None

    def draw(self) -> torch.Tensor:
        """A batch, augmented."""
        if self.pil:
            x = torch.stack([PIL(Image.fromarray(image)) for image in self.images]).to(DEVICE)
        else:
            x = torch.from_numpy(self.images).permute(0, 3, 1, 2).to(DEVICE)
            x = augment(x, draw_augmentation(BATCH_SIZE, torch.Generator(DEVICE)), IMAGENET_MEAN, IMAGENET_STD)
        return x.contiguous(memory_format=self.memory_format)

    def choose(self, arch: Arch) -> None:
        """Make `arch` the active subnet; a network that has only one does nothing."""

    def seconds(self, archs: Step, distill: bool = False) -> float:
        """Seconds of one optimizer step, augmentation included; the subnets' gradients are summed."""

        def step() -> None:
            self.net.train()
            x = self.draw()
            self.optimizer.zero_grad(set_to_none=False)
            if distill:
                with torch.no_grad():
                    soft_labels = self.teacher(x).softmax(1)
            for arch in archs:
                self.choose(arch)
                logits = self.net(x)
                loss = F.cross_entropy(logits, self.labels)
                if distill:
                    loss = loss + F.cross_entropy(logits, soft_labels)
                loss.backward()
            self.optimizer.step()

        return timed(step)


class Official(Peer):
    """Cai et al.'s supernet, by default in its own memory format."""

    def __init__(self, memory_format: torch.memory_format = torch.contiguous_format, pil: bool = True):
        choices = {"ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
        super().__init__(OFAMobileNetV3(100, (0.1, 1e-5), 0.1, **choices), memory_format, pil)
        self.choose(SPACE.largest)
        self.teacher = self.net.get_active_subnet().train()

    def choose(self, arch: Arch) -> None:
        self.net.set_active_subnet(list(arch.kernel), list(arch.expand), list(arch.depth))


def plain(arch: Arch) -> Peer:
    """One subnet as an ordinary network, which learns nothing else."""
    return Peer(SuperNet(SPACE).extract(arch, dropout=0.1), torch.channels_last, pil=False)
