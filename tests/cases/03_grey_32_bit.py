"""A 32-bit integer grey TIFF, of full range (ImageMagick, -depth 32) or of values 0 to 255 (arrays saved by scientific
programs), is a picture, not all white or all black: read it scaled, or refuse it as floating-point ones are."""
import sys, tempfile
from pathlib import Path
import numpy as np
from PIL import Image
from rsslib.data.images import read_image
from rsslib.errors import InputError

ramp = np.tile(np.arange(256, dtype=np.int64), (64, 1))
wrong = 0
with tempfile.TemporaryDirectory() as folder:
    for what, values in {"full range": ramp * (2**31 // 256), "0 to 255": ramp}.items():
        path = Path(folder, f"{what}.tif")
        Image.fromarray(values.astype(np.int32)).save(path)
        try:
            x = read_image(path, grey=True)
        except InputError as error:
            print(what, "refused:", error); continue
        print(f"{what}: a ramp of 256 greys is read as {len(np.unique(x))} greys, from {x.min()} to {x.max()}")
        wrong += len(np.unique(x)) < 200
sys.exit(wrong > 0)
