"""An image file may be a PostScript program by content, whatever its suffix; Pillow hands it to Ghostscript, which then
writes files or loops for ever. A dataset folder and `rsslib predict` must refuse it without running it. Exit 0: refused."""
import subprocess, sys, tempfile
from pathlib import Path

CHILD = """
import sys
from rsslib.data.images import read_image
from rsslib.errors import InputError
try:
    read_image(sys.argv[1], False)
except InputError as error:
    print("refused:", error); sys.exit(0)
sys.exit(1)
"""
with tempfile.TemporaryDirectory() as folder:
    image, written = Path(folder, "x.png"), Path(folder, "written")
    image.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        + f"({written}) (w) file dup (owned) writestring closefile\n0 0 9 9 rectfill\nshowpage\n".encode()
    )
    result = subprocess.run([sys.executable, "-c", CHILD, str(image)], timeout=60)
    print("the image wrote a file:", written.exists())
    sys.exit(result.returncode or written.exists())
