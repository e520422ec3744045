"""rsslib.data.augmentation against torchvision: the distribution of its parameters, and its pixels."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as F2
from helpers import AUGMENT_ERROR
from PIL import Image
from scipy import stats

from rsslib.data.augmentation import PARAMETERS, augment, draw_augmentation, normalise
from rsslib.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from rsslib.errors import InputError
from rsslib.space import RESOLUTION

N = 20_000
P = 1e-3  # a correct sampler fails a test at this level once in a thousand seeds; the seeds here are fixed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def named(p):
    return SimpleNamespace(**dict(zip(PARAMETERS, p, strict=True)))


def replaced(p, **values):
    return torch.stack(
        [torch.as_tensor(values.get(name, row)).float().expand(len(row)) for name, row in vars(named(p)).items()]
    )


@pytest.fixture(scope="module")
def drawn():
    return draw_augmentation(N, generator())


def torchvision_crops(n=N, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), seed=1):
    """Columns top, left, height, width of n crops by torchvision."""
    image = torch.empty(3, RESOLUTION, RESOLUTION)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        crops = [T.RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]
    return np.array(crops).T


@pytest.fixture(scope="module")
def reference():
    return torchvision_crops()


def crop_statistics(top, left, height, width):
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": height * width,
        "ratio": height / width,
        "vertical centre": top + height / 2,
        "room used": top / (RESOLUTION - height + 1) - left / (RESOLUTION - width + 1),
    }


def p_values(ours, theirs):
    """Two-sample tests: Kolmogorov-Smirnov of each statistic, chi-squared of the counts of each side."""
    ours, theirs = crop_statistics(*ours), crop_statistics(*theirs)
    p = {name: stats.ks_2samp(ours[name], theirs[name]).pvalue for name in ours}
    for side in ("top", "left", "height", "width"):
        counts = np.stack([np.bincount(crops[side], minlength=RESOLUTION + 1) for crops in (ours, theirs)])
        p[f"{side} counts"] = stats.chi2_contingency(counts[:, counts.sum(0) >= 20]).pvalue
    return p


def as_crops(parameters):
    return parameters[:4].long().numpy()


# ---- parameters


def test_crops_are_distributed_like_torchvisions(drawn, reference):
    p = p_values(as_crops(drawn), reference)
    assert min(p.values()) > P, p


@pytest.mark.parametrize(
    "wrong",
    [{"scale": (0.1, 1)}, {"scale": (0.08, 0.9)}, {"ratio": (0.7, 1 / 0.7)}, {"ratio": (0.75, 1.3)}],
)
def test_comparison_detects_a_wrong_range(drawn, wrong):
    p = p_values(as_crops(drawn), torchvision_crops(**wrong))
    assert min(p.values()) < P / 100, p


def test_crop_is_the_whole_image_if_no_draw_fits(monkeypatch):
    largest = 1 - 2**-24  # of the numbers that torch.rand gives: area 1, ratio 4/3, never fits
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full(size, largest))
    crops = as_crops(draw_augmentation(3, generator()))
    assert (crops == np.array([[0], [0], [RESOLUTION], [RESOLUTION]])).all()


def test_largest_random_number_stays_within_the_image(monkeypatch):
    rand = torch.rand
    draws = iter([lambda: rand(2, 10, 500), lambda: torch.full((6, 500), 1 - 2**-24)])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: next(draws)())
    p = named(draw_augmentation(500, generator()))
    assert (p.top + p.height == RESOLUTION).all() and (p.left + p.width == RESOLUTION).all()


def test_flips_and_orders_are_fair(drawn):
    for coin in (named(drawn).flip, named(drawn).brightness_first):
        assert set(coin.tolist()) == {0, 1}
        assert stats.binomtest(int(coin.sum()), N).pvalue > P


def test_factors_are_uniform_over_their_ranges(drawn):
    p = named(drawn)
    for factor, low, high in ((p.brightness, 1 - 32 / 255, 1 + 32 / 255), (p.saturation, 0.5, 1.5)):
        assert factor.dtype == torch.float32
        assert stats.kstest(factor.numpy(), stats.uniform(low, high - low).cdf).pvalue > P
        wrong = stats.uniform(low - 0.02 * (high - low), high - low)
        assert stats.kstest(factor.numpy(), wrong.cdf).pvalue < P / 100


def test_parameters_are_independent(drawn):
    top, left, height, width = as_crops(drawn)
    inside = (height < RESOLUTION - 1) & (width < RESOLUTION - 1)
    columns = [height * width, np.log(height / width), top / (RESOLUTION - height + 1), left / (RESOLUTION - width + 1)]
    columns += [*drawn[4:]]
    correlation = np.corrcoef([np.asarray(column, dtype=float)[inside] for column in columns])
    np.fill_diagonal(correlation, 0)
    assert abs(correlation[2:, 2:]).max() < 4.5 / math.sqrt(inside.sum())
    assert abs(correlation[:2, 4:]).max() < 4.5 / math.sqrt(inside.sum())


def test_seed_fixes_the_parameters():
    a, b, c = (draw_augmentation(99, generator(seed)) for seed in (3, 3, 4))
    g = generator(3)
    draw_augmentation(99, g)
    d = draw_augmentation(99, g)
    assert a.shape == (8, 99) and torch.equal(a, b)
    for other in (c, d):
        assert (a != other).any(1).all()


def test_strength_scales_the_augmentation_from_none_to_the_studys():
    full, half, none = (draw_augmentation(5_000, generator(), strength=strength) for strength in (1.0, 0.5, 0.0))
    x = random_images(5_000)
    assert torch.equal(augment(x, none, None, None), normalise(x, None, None))
    full, half = named(full), named(half)
    assert half.height.mul(half.width).div(RESOLUTION**2).min() >= 0.5
    assert half.flip.mean() == pytest.approx(0.25, abs=0.03)
    for name in ("brightness", "saturation"):
        whole, part = getattr(full, name) - 1, getattr(half, name) - 1
        torch.testing.assert_close(part, whole / 2, atol=1e-6, rtol=0)


def test_indexing_picks_images():
    p = draw_augmentation(10, generator())
    x = random_images(10)
    whole = augment(x, p, IMAGENET_MEAN, IMAGENET_STD)
    for rows in (torch.tensor([7, 0, 7]), slice(2, 6)):
        out = augment(x[rows], p[:, rows], IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(out, whole[rows], rtol=0, atol=2 * AUGMENT_ERROR / min(IMAGENET_STD))


# ---- pixels


def random_images(n, channels=3, seed=0):
    images = torch.randint(0, 256, (n, channels, RESOLUTION, RESOLUTION), dtype=torch.uint8, generator=generator(seed))
    return images.contiguous(memory_format=torch.channels_last)


def without_jitter(p):
    return replaced(p, brightness=1, saturation=1)


def crop_and_flip(image, top, left, height, width, flip):
    """torchvision's crop, resize and flip of a tensor in 0..1 or of a PIL image."""
    image = F.resized_crop(
        image, top, left, height, width, [RESOLUTION, RESOLUTION], F.InterpolationMode.BILINEAR, antialias=True
    )
    return F.hflip(image) if flip else image


def torchvision_pipeline(image, row, functional):
    """One uint8 image through torchvision in float64; `row` are its parameters."""
    *crop, brightness, saturation, brightness_first = row
    x = crop_and_flip(image.double() / 255, *crop)
    jitters = [(functional.adjust_brightness, brightness), (functional.adjust_saturation, saturation)]
    for adjust, factor in jitters if brightness_first else jitters[::-1]:
        x = adjust(x, factor)
    return x


def by_image(p):
    return ((*map(int, row[:5]), *row[5:]) for row in p.T.tolist())


@pytest.mark.parametrize("functional", [F, F2], ids=["v1", "v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_torchvisions(channels, functional):
    x, p = random_images(200, channels), draw_augmentation(200, generator(5))
    expected = torch.stack([torchvision_pipeline(*pair, functional) for pair in zip(x, by_image(p), strict=True)])
    assert (expected == 1).double().mean() > 0.001  # clipping is put to the test
    out = augment(x, p, None, None)
    assert out.dtype == torch.float32 and out.shape == x.shape and out.stride(1) == 1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=AUGMENT_ERROR)

    mean, std = IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
    out = augment(x, p, mean, std)
    assert out.stride(1) == 1 and out.stride(3) == channels
    error = AUGMENT_ERROR / min(std)  # normalising adds less than 4 EPS
    torch.testing.assert_close(out.double(), T.Normalize(mean, std)(expected), rtol=0, atol=error)


def test_every_crop_size_in_every_corner():
    sides = [1, 2, 7, 8, 13, 31, 32]
    crops = [(t, le, h, w) for h in sides for w in sides for t in {0, RESOLUTION - h} for le in {0, RESOLUTION - w}]
    top, left, height, width = torch.tensor(crops).T
    p = draw_augmentation(len(crops), generator())
    p = without_jitter(replaced(p, top=top, left=left, height=height, width=width))
    x = random_images(len(crops))
    expected = [crop_and_flip(image.double() / 255, *row[:5]) for image, row in zip(x, by_image(p), strict=True)]
    torch.testing.assert_close(augment(x, p, None, None).double(), torch.stack(expected), rtol=0, atol=AUGMENT_ERROR)


def test_pixels_are_within_the_rounding_of_pillows_8_bits():
    # Pillow rounds to 8 bits after the horizontal and after the vertical pass: up to half a step each.
    x, p = random_images(500), without_jitter(draw_augmentation(500, generator(6)))
    pil = []
    for image, row in zip(x, by_image(p), strict=True):
        image = crop_and_flip(Image.fromarray(image.permute(1, 2, 0).numpy()), *row[:5])
        pil.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    difference = 255 * augment(x, p, None, None) - torch.stack(pil)
    assert difference.abs().max() < 1.001  # float32 adds less than 0.0005
    assert difference.abs().mean() < 0.35 and difference.mean().abs() < 0.05  # Pillow rounds halves up


def test_images_and_parameters_are_not_changed():
    x, p = random_images(20), draw_augmentation(20, generator())
    x_before = x.clone()
    first = augment(x, p, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(first, augment(x, p, IMAGENET_MEAN, IMAGENET_STD)) and torch.equal(x, x_before)


def test_pixels_must_be_uint8():
    with pytest.raises(InputError, match="images are torch.float32, expected torch.uint8"):
        augment(random_images(4) / 255, draw_augmentation(4, generator()), None, None)


def test_augmentation_fills_images_of_any_size():
    x = torch.full((200, 3, 64, 64), 200, dtype=torch.uint8)
    p = draw_augmentation(200, generator(), 64)
    top, left, height, width, *_ = p
    assert ((top + height).max(), (left + width).max()) == (64, 64) and height.min() < 24
    still = replaced(p, top=0, left=0, height=64, width=64, flip=0, brightness=1, saturation=1)
    noise = torch.randint(256, x.shape, generator=generator(), dtype=torch.uint8)
    assert torch.equal(augment(noise, still, None, None), normalise(noise, None, None))  # all factors are 0 or 1
    assert augment(x, p, None, None).double().std((2, 3)).max() < AUGMENT_ERROR  # no border comes in


# ---- devices


def test_no_shape_or_branch_depends_on_data():
    # a meta tensor has no data, so that .item(), masks and nonzero raise
    p = draw_augmentation(6, generator()).to("meta")
    out = augment(random_images(6).to("meta"), p[:, torch.arange(6)], IMAGENET_MEAN, IMAGENET_STD)
    assert out.shape == (6, 3, RESOLUTION, RESOLUTION) and out.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.parametrize(("channels", "mean", "std"), [(1, None, None), (3, IMAGENET_MEAN, IMAGENET_STD)])
def test_cuda_graph_captures_augmentation(channels, mean, std):
    batches = [(random_images(64, channels, seed), draw_augmentation(64, generator(seed))) for seed in (1, 2)]
    x, p = (tensor.cuda() for tensor in batches[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        augment(x, p, mean, std)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = augment(x, p, mean, std)
    for images, parameters in batches:
        x.copy_(images)
        p.copy_(parameters)
        graph.replay()
        error = 2 * AUGMENT_ERROR / min(std or (1,))  # of two float32 results
        torch.testing.assert_close(out.cpu(), augment(images, parameters, mean, std), rtol=0, atol=error)
    assert draw_augmentation(5, torch.Generator("cuda")).is_cuda
