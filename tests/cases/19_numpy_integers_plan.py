"""Seeds drawn by NumPy (`rng.integers(...)`, `np.arange(3)`) are whole numbers."""
import sys
import numpy as np
from rsstudy.plan import plan
from rsslib.errors import InputError
wrong = 0
for seeds in ([np.int64(0), np.int64(1)], np.arange(2), list(np.random.default_rng(0).integers(0, 99, 2))):
    try:
        print(len(plan("smoke", methods=["rss"], seeds=seeds)), "runs")
    except InputError as error:
        print("refused:", error); wrong += 1
sys.exit(wrong > 0)
