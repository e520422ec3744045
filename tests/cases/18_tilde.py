"""`Settings(results="~/rss")` and `--results=~/rss` (no shell expands that) mean the home folder, not a folder named ~ in
the current one."""
import os, sys, tempfile
from pathlib import Path
os.environ["HOME"] = tempfile.mkdtemp()
os.chdir(tempfile.mkdtemp())
from rsstudy.plan import Settings
from rsslib.errors import InputError
from rsslib.files import make_folder
try:
    made = make_folder(Settings(results="~/rss").results / "x").resolve()
except InputError as error:
    print("refused:", error); sys.exit(0)
print("made", made, "- the current folder holds", os.listdir("."))
sys.exit(os.path.exists("~"))
