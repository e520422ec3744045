"""A phone photo whose upright view is stored sideways with EXIF orientation 6 should be read as people see it,
in training folders and in `rsslib predict` alike. Exit 0: right, 1: wrong."""
import sys, tempfile
from pathlib import Path
import numpy as np
from PIL import Image
from rsslib import load_dataset
from rsslib.data.images import read_image

upright = np.zeros((60, 80, 3), np.uint8)
upright[:30, :, 0] = 255  # red above
upright[30:, :, 2] = 255  # blue below
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    sideways = Image.fromarray(np.rot90(upright).copy())  # as the sensor was held; orientation 6 turns it back clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for name in ("a", "b"):
            (root / "pets" / split / name).mkdir(parents=True)
            for i in range(6):
                extra = np.roll(np.asarray(sideways), 0)
                im = Image.fromarray(extra); im.putpixel((i, 0), (1 + i, 2 + ord(name), 3 + len(split)))
                im.save(root / "pets" / split / name / f"{i}.jpg", exif=exif, quality=95)
    data = load_dataset("pets", root)
    x = data.x_train[0].float()
    top, bottom = x[:, :8].mean((1, 2)), x[:, -8:].mean((1, 2))
    pixels = read_image(root / "pets" / "test" / "a" / "0.jpg", grey=False)
    print("shape that predict reads:", pixels.shape, "expected (60, 80, 3)")
    print("training image, mean RGB of its top rows", top.tolist(), "(expected red), bottom rows", bottom.tolist(), "(expected blue)")
    right = top[0] > 200 and bottom[2] > 200 and pixels.shape == (60, 80, 3)
sys.exit(not right)
