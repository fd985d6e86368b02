"""Exported encoders embed as the encoder does, whatever the batch, and what differs is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from contrastive_jax import distances, export, models
from contrastive_jax.train import network

pytest.importorskip("flatbuffers", reason="needs flatbuffers, of the extra export")

ENCODERS = {
    "MLP": functools.partial(models.MLP, (8, 8, 1), hidden=(16,)),
    "DrLIM": functools.partial(models.DrLIM, (8, 8, 1)),
    "ConvNet": functools.partial(models.ConvNet, (9, 8, 3), channels=(4, 8), hidden=16),
    "ResNet18": functools.partial(models.ResNet18, (8, 8, 1)),
    # Its stem and its pooling of large images.
    "ResNet18 of 72 x 72": functools.partial(models.ResNet18, (72, 72, 1)),
}
RESNETS = [pytest.param(name, marks=pytest.mark.long) for name in [*ENCODERS][3:]]
ALL = [*[*ENCODERS][:3], *RESNETS]
SHAPES = {name: make.args[0] for name, make in ENCODERS.items()}


@pytest.fixture(scope="module")
def split():
    """Makes an encoder of a name as `encode` and `params`, once."""
    return functools.cache(lambda name: network(ENCODERS[name](rngs=nnx.Rngs(0)))[1:])


def _images(shape, count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def _decide(**changed):
    return {"distance": distances.euclidean, "threshold": 0.5, **changed}


@pytest.mark.parametrize("name", ALL)
def test_stablehlo_takes_batches_of_any_size(split, name):
    encode, params = split(name)
    content = export.to_stablehlo(encode, params, SHAPES[name])
    embed = export.from_stablehlo(content)
    for count in (1, 3, 64):
        images = _images(SHAPES[name], count)
        np.testing.assert_allclose(embed(images), jax.jit(encode)(params, images), atol=1e-5)
    assert jax.export.deserialize(bytearray(content)).platforms == ("cpu", "cuda", "tpu")


def test_a_deep_network_is_exported():
    encode, params = network(ENCODERS["ResNet18 of 72 x 72"](rngs=nnx.Rngs(0)))[1:]
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 72, 72, 1), jnp.uint8)
    assert str(jax.eval_shape(encode, params, images).shape) == "(batch, 128)"


def test_stablehlo_tells_nothing_of_the_machine_and_is_the_same_again(split):
    encode, params = split("MLP")
    content = export.to_stablehlo(encode, params, (8, 8, 1))
    assert b".py" not in content
    assert export.to_stablehlo(encode, params, (8, 8, 1)) == content


def test_stablehlo_is_jitted_and_mapped(split):
    encode, params = split("ConvNet")
    embed = export.from_stablehlo(export.to_stablehlo(encode, params, (9, 8, 3)))
    images = _images((9, 8, 3), 6)
    expected = encode(params, images)
    np.testing.assert_allclose(jax.jit(embed)(images), expected, atol=1e-5)
    mapped = jax.vmap(embed)(images.reshape(3, 2, 9, 8, 3))
    np.testing.assert_allclose(mapped.reshape(6, -1), expected, atol=1e-5)
    twice = jax.vmap(jax.vmap(embed))(images.reshape(3, 2, 1, 9, 8, 3))
    np.testing.assert_allclose(twice.reshape(6, -1), expected, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_onnx_takes_batches_of_any_size(split, name):
    pytest.importorskip("jax2onnx", reason="needs the extra export")
    onnx = pytest.importorskip("onnx")
    encode, params = split(name)
    content = export.to_onnx(encode, params, SHAPES[name])
    onnx.checker.check_model(content, full_check=True)
    embed = export.from_onnx(content)
    for count in (1, 3, 64):
        images = _images(SHAPES[name], count)
        np.testing.assert_allclose(embed(images), jax.jit(encode)(params, images), atol=1e-5)
    # A number of images that no program of JAX was compiled for.
    np.testing.assert_allclose(embed(images[:5]), embed(images)[:5], atol=1e-5)


def test_programs_take_images_of_floats(split):
    encode, params = split("MLP")
    images = _images((8, 8, 1), 4).astype(np.float32) / 255
    embed = export.from_stablehlo(export.to_stablehlo(encode, params, (8, 8, 1), "float32"))
    np.testing.assert_allclose(embed(images), encode(params, images), atol=1e-6)
    pytest.importorskip("jax2onnx", reason="needs the extra export")
    embed = export.from_onnx(export.to_onnx(encode, params, (8, 8, 1), "float32"))
    np.testing.assert_allclose(embed(images), encode(params, images), atol=1e-6)


def test_images_that_a_program_does_not_take_are_named(split):
    encode, params = split("MLP")
    embed = export.from_stablehlo(export.to_stablehlo(encode, params, (8, 8, 1)))
    image = _images((8, 8, 1), 1)
    for images, message in [
        (image[0], r"takes images \[B, 8, 8, 1\] of uint8 .* got \[8, 8, 1\] .* a batch of one"),
        (image.astype(np.float32), r"of uint8 .*, got \[1, 8, 8, 1\] of float32"),
        (image.transpose(0, 3, 1, 2), r"got \[1, 1, 8, 8\] of uint8"),
        (image[:0], r"B at least 1, got \[0, 8, 8, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            embed(images)
    pytest.importorskip("jax2onnx", reason="needs the extra export")
    embed = export.from_onnx(export.to_onnx(encode, params, (8, 8, 1)))
    for images in (image[0], image.astype(np.float32), image.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"takes images \['batch', 8, 8, 1\] as tensor.uint8"):
            embed(images)


def test_damaged_artefacts_are_refused(split):
    encode, params = split("MLP")
    content = export.to_stablehlo(encode, params, (8, 8, 1))
    for damaged in (b"", content[:100], content[:-100], b"x" * 50):
        with pytest.raises(
            ValueError, match=r"not a StableHLO program that jax .* export it again"
        ):
            export.from_stablehlo(damaged)
    pytest.importorskip("safetensors", reason="needs the extra export")
    content = export.to_safetensors(params)
    for damaged in (b"", content[:100], content[:-4]):
        with pytest.raises(ValueError, match="not whole safetensors"):
            export.from_safetensors(damaged, params)
    pytest.importorskip("jax2onnx", reason="needs the extra export")
    content = export.to_onnx(encode, params, (8, 8, 1))
    for damaged in (b"", content[:-100], b"x" * 50):
        with pytest.raises(ValueError, match=r"not an ONNX model that onnxruntime .* reads"):
            export.from_onnx(damaged)


def test_what_is_no_encoder_of_such_images_is_refused(split):
    encode, params = split("ConvNet")
    for make in (export.to_stablehlo, export.embedding_width):
        with pytest.raises(ValueError, match=r"image_shape must be the shape of one image"):
            make(encode, params, (9, 0, 3))
        with pytest.raises(ValueError, match=r"does not take images \[B, 8, 8, 1\] of uint8"):
            make(encode, params, (8, 8, 1))
        with pytest.raises(ValueError, match=r"must give floating-point embeddings \[B, D\]"):
            make(lambda params, images: images, params, (9, 8, 3))
        with pytest.raises(ValueError, match=r"must give floating-point embeddings \[B, D\]"):
            make(lambda params, images: (images, images), params, (9, 8, 3))


def test_an_encoder_that_asks_for_the_batch_is_named():
    def encode(params, images):
        return images if images.shape[0] > 2 else 2 * images

    with pytest.raises(
        ValueError, match=r"symbolic batch: InconclusiveDimensionOperation: .*batch"
    ):
        export.to_stablehlo(encode, {}, (4,), "float32")


def test_parameters_come_back_from_safetensors(split):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the extra export")
    encode, params = split("ConvNet")
    content = export.to_safetensors(params)
    read = export.from_safetensors(content, jax.eval_shape(lambda: params))
    assert jax.tree.structure(read) == jax.tree.structure(params)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(read), strict=True):
        np.testing.assert_array_equal(after, before)
    images = _images((9, 8, 3), 2)
    np.testing.assert_array_equal(encode(read, images), encode(params, images))
    tensors = safetensors.load(content)
    assert "params.stages.0.kernel" in tensors
    np.testing.assert_array_equal(tensors["params.out.bias"], params.params["out"]["bias"][...])


def test_safetensors_hold_any_tree_and_dtype():
    pytest.importorskip("safetensors", reason="needs the extra export")
    tree = {
        "half": [jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), jnp.ones((), jnp.float16)],
        # In an order of columns, which the file does not have.
        "turned": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "empty": jnp.zeros((0, 3)),
    }
    read = export.from_safetensors(export.to_safetensors(tree), tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(read), strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)


def test_parameters_of_another_encoder_are_refused():
    pytest.importorskip("safetensors", reason="needs the extra export")
    content = export.to_safetensors({"a": jnp.zeros(3), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="c missing, b unexpected"):
        export.from_safetensors(content, {"a": jnp.zeros(3), "c": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"parameter b is float32 \[2\], expected float32 \[3\]"):
        export.from_safetensors(content, {"a": jnp.zeros(3), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"parameter a is float32 \[3\], expected int32 \[3\]"):
        export.from_safetensors(content, {"a": jnp.zeros(3, jnp.int32), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"several parameters are called a\.b"):
        export.to_safetensors({"a.b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}})
    with pytest.raises(ValueError, match="parameter a is of complex64, expected one of bool"):
        export.to_safetensors({"a": jnp.zeros(1, jnp.complex64)})


def _plane(params, points):
    return params * points


def _points(*rows):
    return np.array(rows, np.float32)


def test_agreement_counts_pairs_and_verdicts():
    points = _points([0, 0], [0, 0.5], [0, 2])
    agreement = export.verify(lambda x: x + 1e-5, _plane, 1.0, points, **_decide(threshold=0.5))
    assert agreement.images == 3
    assert agreement.pairs == 3
    assert agreement.changed_verdicts == 0
    assert agreement.largest_difference == pytest.approx(1e-5, rel=0.1)
    # The distance 0.5 is the threshold; a little beyond, its pair is judged otherwise.
    agreement = export.verify(lambda x: x * (1 + 1e-5), _plane, 1.0, points, **_decide())
    assert agreement.changed_verdicts == 1


def test_an_artefact_that_differs_is_refused():
    points = _points([0, 0], [0, 0.5], [0, 2])
    with pytest.raises(ValueError, match=r"differ from those of the encoder by 0\.002, expected"):
        export.verify(lambda x: x * 1.001, _plane, 1.0, points, **_decide())
    with pytest.raises(ValueError, match="by nan"):
        export.verify(lambda x: x * np.nan, _plane, 1.0, points, **_decide())
    with pytest.raises(ValueError, match=r"embeddings \[3, 1\], and the encoder \[3, 2\]"):
        export.verify(lambda x: x[:, :1], _plane, 1.0, points, **_decide())

    # A distance that makes much of little: no entry differs by more than the bound.
    def steep(a, b):
        return 1000 * (distances.euclidean(a, b) - 0.5)

    points = _points([0, 0], [0, 0.49999], [0, 2])
    decide = _decide(distance=steep, threshold=0.0)
    assert export.verify(lambda x: x, _plane, 1.0, points, **decide).changed_verdicts == 0
    message = r"changes the verdict on 1 pairs, .* 0\.01\d* away from the threshold 0;"
    with pytest.raises(ValueError, match=message):
        export.verify(lambda x: x * (1 + 4e-5), _plane, 1.0, points, **decide)


def test_the_bound_is_relative_to_large_embeddings():
    points = _points([0, 0], [0, 1000])
    agreement = export.verify(lambda x: x + 0.01, _plane, 1.0, points, **_decide())
    assert agreement.largest_difference == pytest.approx(0.01, rel=0.01)
    with pytest.raises(ValueError, match=r"expected at most 0\.001"):
        export.verify(lambda x: x + 0.01, _plane, 1.0, points, **_decide(), bound=1e-6)


def test_all_images_are_compared_in_batches():
    sizes = []

    def embed(points):
        sizes.append(len(points))
        return points

    points = np.random.default_rng(0).normal(size=(600, 2)).astype(np.float32)
    agreement = export.verify(embed, _plane, 1.0, points, **_decide())
    assert agreement.pairs == 600 * 599 // 2
    assert sum(sizes) == 600
    assert max(sizes) < 600


FORMATS = ["stablehlo", "safetensors"]


def _write(folder, split, **options):
    encode, params = split("ConvNet")
    defaults = {
        "image_shape": (9, 8, 3),
        "images": _images((9, 8, 3), 12),
        "formats": FORMATS,
    }
    return export.write(folder, encode, params, **_decide(**defaults | options))


def test_an_export_is_a_folder_that_says_how_to_use_it(split, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra export")
    folder = tmp_path / "run" / "export"
    written = _write(folder, split)
    assert sorted(path.name for path in folder.iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
        "encoder.stablehlo",
    ]
    text = (folder / "encoder.json").read_text()
    assert json.loads(text) == written
    assert written["images"] == {
        "shape": ["batch", 9, 8, 3],
        "dtype": "uint8",
        "preprocessing": "pixels from 0 to 255, as they are; the encoder divides them by 255",
    }
    assert written["embeddings"] == {"shape": ["batch", 64], "dtype": "float32"}
    decision = written["decision"]
    assert (decision["distance"], decision["options"]) == ("euclidean", {})
    assert decision["threshold"] == 0.5
    assert written["versions"]["jax"] == jax.__version__
    for one in FORMATS:
        entry = written["files"][one]
        assert entry["bytes"] == (folder / entry["name"]).stat().st_size
        assert entry["agreement"]["pairs"] == 66
        assert entry["agreement"]["largest_difference"] < 1e-6
    # It holds no date: the same export has the same bytes.
    _write(tmp_path / "again", split)
    assert (tmp_path / "again" / "encoder.json").read_text() == text
    embed = export.from_stablehlo((folder / "encoder.stablehlo").read_bytes())
    assert embed(_images((9, 8, 3), 2)).shape == (2, 64)


def test_all_formats_are_written(split, tmp_path):
    pytest.importorskip("jax2onnx", reason="needs the extra export")
    written = _write(tmp_path, split, formats=export.folder.FORMATS)
    assert [*written["files"]] == ["stablehlo", "onnx", "safetensors"]
    assert written["files"]["onnx"]["agreement"]["largest_difference"] < 1e-5
    # Of another export with fewer formats, no file of this one is left.
    _write(tmp_path, split, formats=["stablehlo"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.json", "encoder.stablehlo"]


def test_a_failed_export_leaves_the_one_before(split, tmp_path, no_larger_files, monkeypatch):
    _write(tmp_path, split, formats=["stablehlo"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    # A full disk.
    with no_larger_files(1000), pytest.raises(OSError, match="large"):
        _write(tmp_path, split, formats=["stablehlo"], threshold=0.6)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # An artefact that does not agree.
    monkeypatch.setitem(
        export.folder._READ_BACK,
        "stablehlo",
        lambda content, *_: lambda images: 2 * export.from_stablehlo(content)(images),
    )
    with pytest.raises(ValueError, match="embeddings of the artefact differ"):
        _write(tmp_path, split, formats=["stablehlo"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onyx"]}, "formats must be some of stablehlo, onnx, safetensors, got onyx"),
        ({"formats": []}, "got none"),
        ({"threshold": float("nan")}, "threshold must be a finite number, got nan"),
        ({"bound": 0}, "bound must be above 0"),
        ({"images": _images((9, 8, 3), 1)}, r"at least two, .* \[1, 9, 8, 3\]"),
        ({"images": _images((8, 9, 3), 4)}, r"\[N, 9, 8, 3\] of uint8, got \[4, 8, 9, 3\]"),
        ({"images": np.zeros((4, 9, 8, 3))}, r"of uint8, got \[4, 9, 8, 3\] of float64"),
        ({"distance": lambda a, b: 0.0}, "distance must be a function with a name"),
    ],
)
def test_unfit_arguments_are_named_and_nothing_is_written(split, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "export", split, **options)
    assert not (tmp_path / "export").exists()


def test_a_distance_with_bound_arguments_is_described_with_them():
    entries = export.describe(
        image_shape=(8, 8, 1),
        image_dtype="float32",
        width=2,
        distance=functools.partial(distances.minkowski, order=jnp.float32(3)),
        threshold=1,
        preprocessing="pixels in [-1, 1]",
    )
    assert entries["decision"]["distance"] == "minkowski"
    assert entries["decision"]["options"] == {"order": 3.0}
    assert entries["images"]["preprocessing"] == "pixels in [-1, 1]"
