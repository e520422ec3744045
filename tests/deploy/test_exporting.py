"""rsslib.deploy.exporting and .predicting: what is exported computes what the supernet does, or is not written."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from helpers import EPS, TINY, assert_close, double_images, random_archs, random_supernet, sentence, toy_data
from PIL import Image
from torch import nn

from rsslib.data.augmentation import normalise
from rsslib.data.images import resize_with_torch
from rsslib.data.pixels import fit
from rsslib.deploy import exporting
from rsslib.deploy.exporting import TOLERANCE, compare, deployable, export, onnx_model, verify
from rsslib.deploy.latency import latency, write_scripts
from rsslib.deploy.predicting import open_model
from rsslib.errors import InputError
from rsslib.evaluate import evaluate_population, recalibrate, recalibration_images
from rsslib.space import SearchSpace
from rsstudy.cli import main

DATA = {channels: toy_data(300, 60, channels) for channels in (1, 3)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file, and what it was made of."""
    supernet = random_supernet(SearchSpace(TINY, classes=4)).eval()
    arch = random_archs(supernet.space, 1, seed=3)[0]
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    return path, supernet, arch, export(supernet, arch, DATA[3], path)


@pytest.mark.parametrize("backbone", ["mobilenet_v3", "proxylessnas"])
@pytest.mark.parametrize("channels", [1, 3])
def test_deployable_equals_the_recalibrated_subnet(backbone, channels, monkeypatch):
    double_images(monkeypatch, (exporting, "recalibration_images"))
    data = DATA[channels]
    supernet = random_supernet(SearchSpace(backbone, in_channels=channels, classes=4), dtype=torch.float64).eval()
    recalibration = recalibration_images(data).double()
    for arch in random_archs(supernet.space, 3):
        network = supernet.extract(arch)
        network.load_state_dict(recalibrate(supernet, arch, recalibration), strict=False)
        subnet = deployable(supernet, arch, data).double()
        images = subnet.normalise(data.x_test)
        # up to 2.5 EPS: one side rounds its scale of pixels to float32, the other rounds pixels twice and doubles them
        expected = normalise(data.x_test, data.mean, data.std).double()
        torch.testing.assert_close(images, expected, rtol=0, atol=4 * EPS)
        with torch.no_grad():
            assert_close(subnet(data.x_test), network(images))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in subnet.modules())
        assert subnet.metadata["arch"] == vars(arch) and subnet.metadata["classes"] == data.classes


def test_deployable_needs_images(exported):
    with pytest.raises(InputError, match="images is None: give the dataset"):
        deployable(exported[1])


def test_file_gives_the_logits_of_any_batch_elsewhere(exported):
    path, supernet, arch, words = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    subnet = deployable(supernet, arch, DATA[3]).double()
    for n in (1, 2, 60):
        x = DATA[3].x_test[:n].contiguous()
        assert_close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), subnet(x), tolerance=TOLERANCE)
    table = evaluate_population(supernet, [(1.0, arch)], DATA[3], progress=False)
    assert words["accuracy"] == table["accuracy"][0]
    assert words["checked_images"] == 256 and 0 <= words["difference"] <= TOLERANCE


def test_metadata_describe_the_file(exported):
    path, supernet, arch, words = exported
    metadata = open_model(path).metadata
    assert metadata == words
    assert metadata["classes"] == list("0123") and (metadata["channels"], metadata["resolution"]) == (3, 32)
    assert metadata["arch"] == {"kernel": list(arch.kernel), "expand": list(arch.expand), "depth": list(arch.depth)}
    assert metadata["mflops"] == supernet.space.macs(arch) / 1e6


def test_file_names_no_paths_of_this_machine(exported):
    content = exported[0].read_bytes()
    assert b"stack_trace" not in content and not re.search(rb'File \\?"', content)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": "0123"},
        {"classes": {"a": 1, "b": 2, "c": 3, "d": 4}},
        {"classes": ["a", "b"]},
        {"resolution": 64},
        {"channels": 1},
        {"rsslib": 2},
    ],
)
def test_metadata_that_do_not_describe_the_model_are_refused(exported, tmp_path, changed):
    model = onnx.load(exported[0])
    texts = {prop.key: prop.value for prop in model.metadata_props}
    texts |= {name: json.dumps(value) for name, value in changed.items()}
    onnx.helper.set_model_props(model, texts)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="not one that this version") as error:
        open_model(tmp_path / "model.onnx")
    assert sentence(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(exported, tmp_path, value):
    model = onnx.load(exported[0])
    for tensor in model.graph.initializer:
        if tensor.name.endswith("classifier.bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, value, np.float32), tensor.name))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    Image.new("L", (50, 40), 128).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="gives no finite logits for .*grey.png") as error:
        open_model(tmp_path / "model.onnx").predict(tmp_path / "grey.png")
    assert sentence(error)


def foreign(nodes, kind=onnx.TensorProto.FLOAT, outputs=("logits",), **constants):
    """The content of an ONNX file that claims to be ours, whose `nodes` turn the pixels' means x [N, 2] into logits."""
    make = onnx.helper
    before = [
        make.make_node("Cast", ["images"], ["float"], to=onnx.TensorProto.FLOAT),
        make.make_node("ReduceMean", ["float"], ["mean"], axes=[2, 3], keepdims=0),
        make.make_node("Concat", ["mean", "mean"], ["x"], axis=1),
    ]
    given = [make.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["N", 1, 32, 32])]
    found = [make.make_tensor_value_info(name, kind, ["N", 2]) for name in outputs]
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = make.make_graph([*before, *nodes], "foreign", given, found, values)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    make.set_model_props(
        model, {"rsslib": "1", "channels": "1", "resolution": "32", "classes": '["a\\u001b[2J", "b\\nc"]'}
    )
    return model.SerializeToString()


node = onnx.helper.make_node
FOREIGN = {
    "integers": foreign([node("Cast", ["x"], ["logits"], to=onnx.TensorProto.INT64)], onnx.TensorProto.INT64),
    "text": foreign([node("Cast", ["x"], ["logits"], to=onnx.TensorProto.STRING)], onnx.TensorProto.STRING),
    "two outputs": foreign([node("Identity", ["x"], [name]) for name in ("a", "b")], outputs=("a", "b")),
    "two rows": foreign([node("Concat", ["x", "x"], ["logits"], axis=0)]),
    "no rows": foreign([node("Slice", ["x", "none", "none"], ["logits"])], none=np.int64([0])),
    "an index out of range": foreign([node("Gather", ["x", "i"], ["logits"], axis=1)], i=np.int64([0, 99])),
    "another shape": foreign([node("Reshape", ["x", "shape"], ["logits"])], shape=np.int64([5, 2])),
    "four terabytes": foreign(
        [
            node("ConstantOfShape", ["n"], ["big"]),
            node("ReduceSum", ["big"], ["sum"], keepdims=0),
            node("Add", ["x", "sum"], ["logits"]),
        ],
        n=np.int64([2**40]),
    ),
}


@pytest.mark.parametrize("model", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_model_is_refused_in_a_sentence(model, tmp_path, capfd):
    (tmp_path / "model.onnx").write_bytes(model)
    Image.new("L", (50, 40), 128).save(tmp_path / "grey.png")
    with pytest.raises(InputError) as error:
        open_model(tmp_path / "model.onnx").predict(tmp_path / "grey.png")
    assert sentence(error) and capfd.readouterr().err == ""


def test_class_names_cannot_steer_the_terminal(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(foreign([node("Identity", ["x"], ["logits"])]))
    paths = [tmp_path / name for name in ("grey.png", "a\x1b]0;title\x07.png", "b\n.png", "\u202egnp.png")]
    for path in paths:
        Image.new("L", (50, 40), 128).save(path)
    assert main(["predict", str(tmp_path / "model.onnx"), *map(str, paths), str(tmp_path / "\x1b[2J")]) == 2
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.endswith(r": a\x1b[2J (50.0 %)") for line in lines] == [True] * 4
    assert all(line.isprintable() for line in [*lines, *printed.err.splitlines()])


LOOP = onnx.helper.make_graph(
    [node("Identity", ["go"], ["on"]), node("Add", ["v", "v"], ["w"])],
    "body",
    [
        onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
        onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
        onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, None),
    ],
    [
        onnx.helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, None),
    ],
)


@pytest.mark.parametrize("use", ["predict", "latency"])
def test_model_that_never_ends_is_stopped_by_ctrl_c(tmp_path, use):
    endless = foreign([node("Loop", ["n", "true", "x"], ["logits"], body=LOOP)], n=np.int64(2**62), true=np.bool_(True))
    (tmp_path / "model.onnx").write_bytes(endless)
    Image.new("L", (50, 40), 128).save(tmp_path / "grey.png")
    timer = threading.Timer(2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        if use == "predict":
            open_model(tmp_path / "model.onnx").predict(tmp_path / "grey.png")
        else:
            latency(tmp_path / "model.onnx")


def test_exports_in_threads_are_all_written(exported, tmp_path):
    _, supernet, arch, words = exported
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda name: export(supernet, arch, DATA[3], tmp_path / name), ("a.onnx", "b.onnx")))
    assert done == [words, words]


def test_export_that_differs_is_refused(exported):
    _, supernet, arch, _ = exported
    subnet = deployable(supernet, arch, DATA[3])
    images, precision = DATA[3].x_test.contiguous(), torch.backends.cudnn.conv.fp32_precision
    model = onnx_model(subnet, images[:2])
    assert torch.backends.cudnn.conv.fp32_precision == precision  # as CUDA training set it
    assert verify(subnet, model, images)[1] <= TOLERANCE
    for tensor in model.graph.initializer:
        if tensor.name.endswith("classifier.weight"):
            weight = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    with pytest.raises(InputError) as error:
        verify(subnet, model, images)
    assert "differs from PyTorch by" in sentence(error)


def test_no_file_appears_if_verification_fails(exported, tmp_path, monkeypatch):
    _, supernet, arch, _ = exported
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(InputError) as error:
        export(supernet, arch, DATA[3], tmp_path / "model.onnx")
    assert "no file was written" in sentence(error)
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_may_differ_only_where_the_margin_is_small():
    expected = np.array([[1.0, 0.5], [0.3, 0.30001]], np.float32)
    near = expected + np.array([[0, 0], [2e-5, 0]], np.float32)
    assert 0 < compare(near, expected) < TOLERANCE
    for far in (expected[::-1], expected + np.array([[0, 0], [2e-4, 0]], np.float32), expected * np.nan, expected[:1]):
        with pytest.raises(InputError):
            compare(far, expected)


def test_predictions_equal_the_models(exported, tmp_path):
    path, supernet, arch, _ = exported
    subnet, images = deployable(supernet, arch, DATA[3]).double(), DATA[3].x_test[:5]
    files = []
    for i, x in enumerate(images):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(files[-1])
    logits = subnet(images)
    probabilities = logits.softmax(1)
    error = TOLERANCE * logits.abs().max().item() / 2  # a probability changes at most half as much as the logits
    model = open_model(path)
    for i, prediction in enumerate(map(model.predict, files)):
        assert prediction.label == DATA[3].classes[probabilities[i].argmax()]
        assert prediction.probability == pytest.approx(probabilities[i].max().item(), rel=0, abs=error)


def test_kit_predicts_as_the_command_without_pytorch_and_without_this_package(exported, tmp_path, capsys):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright
    Image.fromarray(colours[..., :3]).resize((900, 700)).save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(colours).save(tmp_path / "transparent.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(colours[..., 0].astype(np.uint16) << 8).save(tmp_path / "deep.png")
    images = [str(tmp_path / name) for name in ("turned.jpg", "transparent.png", "grey.png", "deep.png")]
    (tmp_path / "notes.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert main(["predict", str(exported[0]), *images]) == 0
    expected = capsys.readouterr().out
    kit = tmp_path / "kit"
    kit.mkdir()
    write_scripts(kit)
    code = (
        f"import runpy, sys; sys.path[0] = {str(kit)!r}; sys.argv[0] = 'predict.py'\n"
        "for name in ('torch', 'rsslib', 'pandas', 'filelock', 'tqdm'): sys.modules[name] = None\n"
        f"runpy.run_path({str(kit / 'predict.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(exported[0]), *images]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    done = subprocess.run([*command, "notes.png"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, expected)
    assert done.stderr.startswith("notes.png is not a readable image: ") and done.stderr.count("\n") == 1
    model = [*command[:3], "notes.png", "grey.png"]
    for wrong, said in ((command[:4], "the following arguments are required: images"), (model, "notes.png is not a")):
        done = subprocess.run(wrong, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_predict_does_not_import_pytorch(exported, tmp_path):
    Image.new("L", (50, 40), 128).save(tmp_path / "grey.png")
    code = (
        "import sys; from rsslib.deploy.predicting import open_model; "
        f"print(open_model({str(exported[0])!r}).predict({str(tmp_path / 'grey.png')!r}).label); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in DATA[3].classes


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_resizes_as_training_does_up_to_a_grey_level(channels, resolution):
    rng = np.random.default_rng(0)
    for height, width in ((8, 8), (28, 28), (32, 32), (37, 211), (300, 40), (500, 400)):
        x = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
        ours, theirs = (fit(x[None], resolution, *how).astype(int) for how in ((), (resize_with_torch,)))
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        centre = x[top : top + side, left : left + side]
        planes = torch.from_numpy(centre).permute(2, 0, 1)[None].double()
        exact = F.interpolate(planes, (resolution,) * 2, mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
        assert np.abs(ours - theirs).max() <= 1
        # they differ only next to a half, which float32 misses by at most EPS of 255 for each of 60 pixels that it sums
        assert (np.abs(exact[ours != theirs] % 1 - 0.5) <= 60 * 255 * EPS).all()


def test_damaged_or_foreign_file_is_refused(exported, tmp_path):
    content = exported[0].read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.onnx").write_text("not a model")
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    onnx.helper.set_model_props(model, {"rsslib": "1", "classes": "[1"})
    (tmp_path / "lying.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name, said in (
        ("cut", "damaged"),
        ("text", "damaged"),
        ("foreign", "not one that"),
        ("lying", "not one that"),
        ("absent", "cannot be read (No such file"),
        ("folder", "cannot be read (Is a directory"),
        ("pipe", "is not a regular file"),
    ):
        with pytest.raises(InputError) as error:
            open_model(tmp_path / f"{name}.onnx")
        assert said in sentence(error) and f"{name}.onnx" in sentence(error)


def test_file_that_is_not_an_image_affects_no_other(exported, tmp_path, capsys):
    (tmp_path / "b.png").write_text("no image")
    files = [str(tmp_path / f"{name}.png") for name in "abc"]
    for path in files[::2]:
        Image.new("L", (50, 40), 128).save(path)
    assert main(["predict", str(exported[0]), *files]) == 2
    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.out.splitlines()] == files[::2]
    assert said.err.startswith(f"rsslib: {files[1]} is not a readable image") and said.err.count("\n") == 1


def test_pixels_that_are_not_uint8_are_refused(exported):
    _, supernet, arch, _ = exported
    subnet = deployable(supernet, arch, DATA[3])
    with pytest.raises(InputError, match="images are torch.float32: expected uint8"):
        subnet(DATA[3].x_test[:2] / 255)


def test_images_that_the_supernet_does_not_take_are_refused(exported, tmp_path):
    _, supernet, arch, _ = exported
    for images in (DATA[1], replace(DATA[3], classes=("a", "b"))):
        with pytest.raises(InputError) as error:
            export(supernet, arch, images, tmp_path / "model.onnx")
        assert "the supernet takes 3 channels, 32 pixels a side, 4 classes" in sentence(error)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package_names_the_extra(exported, tmp_path, monkeypatch, missing):
    path, supernet, arch, _ = exported
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError) as error:
        open_model(path) if missing == "onnxruntime" else export(supernet, arch, DATA[3], tmp_path / "model.onnx")
    assert f"{missing} is not installed: pip install 'rsslib[export]'" in sentence(error)


def test_output_that_cannot_be_written_is_refused(exported, tmp_path):
    _, supernet, arch, _ = exported
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, said in (
        (tmp_path / "file" / "model.onnx", "is a file"),
        (tmp_path, "is a folder"),
        (tmp_path / "link", "a link"),
    ):
        with pytest.raises(InputError) as error:
            export(supernet, arch, DATA[3], path)
        assert said in sentence(error)
