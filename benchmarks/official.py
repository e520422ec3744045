"""The official package's way of training, for comparisons; needs `ofa`, torchvision and Pillow."""

import numpy as np
import torch
from common import DEVICE, SPACE, timed
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3  # of the tests' packages
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from rsslib.methods import BATCH_SIZE
from rsslib.samplers import Step
from rsslib.space import Arch
from rsslib.steps import MOMENTUM, WEIGHT_DECAY


class Official:
    """Cai et al.'s network with the usual pipeline of PIL transforms, in this process, in its own memory format."""

    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=32 / 255, saturation=0.5),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def __init__(self):
        self.net = OFAMobileNetV3(
            100, (0.1, 1e-5), 0.1, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
        ).to(DEVICE)
        named = list(self.net.named_parameters())
        plain = [p for name, p in named if "bn" in name or name.endswith("bias")]
        decayed = [p for name, p in named if not ("bn" in name or name.endswith("bias"))]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0}]
        self.optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=MOMENTUM, nesterov=True)
        self.images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        self.labels = torch.randint(0, 100, (BATCH_SIZE,), device=DEVICE)
        self.choose(SPACE.largest)
        self.teacher = self.net.get_active_subnet().train()

    def choose(self, arch: Arch) -> None:
        self.net.set_active_subnet(list(arch.kernel), list(arch.expand), list(arch.depth))

    def seconds(self, archs: Step, distill: bool = False) -> float:
        """Seconds of one optimiser step, augmentation included; the subnets' gradients are summed."""

        def step() -> None:
            self.net.train()
            x = torch.stack([self.augment(Image.fromarray(image)) for image in self.images]).to(DEVICE)
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
