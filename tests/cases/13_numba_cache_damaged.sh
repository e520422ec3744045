#!/usr/bin/env bash
# A power cut or full disk leaves numba's cache beside kernels.py with an empty index: training must still start (compile
# again, or do without), not fail for ever with "EOFError: Ran out of input". $PY python, $PROJECT a copy that may be written.
d=$(mktemp -d); cp -r "${PROJECT:?}/rsslib" "${PROJECT:?}/rsstudy" "$d/"; cd "$d"
export PYTHONPATH=$d NUMBA_CACHE_DIR=$d/cache
${PY:-python} -c "from rsslib.operators import compiled_loop; compiled_loop()"                                   # fills the cache
find "$d/cache" -name '*.nbi' -exec truncate -s 0 {} +
${PY:-python} - <<'EOP'
from rsslib import load_dataset, start, train, SearchSpace
from rsstudy.plan import plan
data = load_dataset("digits", "/nowhere", train_images=16)
method = plan("smoke", methods=["rss-short"])[0].method
train(start(SearchSpace("mobilenet_v3", classes=10, in_channels=1), method, 0), method, data, 0, lambda s: True, progress=False)
print("trained")
EOP
rc=$?; rm -rf "$d"; exit $rc
