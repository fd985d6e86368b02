import jax
import numpy as np
import pytest
from own_data import pictures, write_folder

from contrastive_jax import models, neighbourhood_maps
from contrastive_jax.train import neighbourhoods, network
from experiments import drlim

RNG = np.random.default_rng(0)


def test_copies_are_moved_sideways_and_lose_nothing():
    images = RNG.integers(1, 256, (3, 28, 28, 1), dtype=np.uint8)
    copies = neighbourhoods.with_moved_copies(images, (-6, -3, 3, 6))
    assert copies.shape == (15, 40, 40, 1)
    for k, move in enumerate((0, -6, -3, 3, 6)):
        inside = copies[3 * k : 3 * k + 3, 6:34, 6 + move : 34 + move]
        np.testing.assert_array_equal(inside, images)
        assert copies[3 * k : 3 * k + 3].sum(dtype=int) == images.sum(dtype=int)


def test_nearest_and_related():
    images = RNG.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    near = neighbourhoods.nearest_by_pixels(images, 2)
    flat = images.reshape(6, -1).astype(float)
    distance = np.linalg.norm(flat[:, None] - flat, axis=2) + 1e9 * np.eye(6)
    np.testing.assert_array_equal(np.sort(near), np.sort(np.argsort(distance)[:, :2]))

    lists = neighbourhoods.neighbours_of_copies(near, 3)
    assert lists.shape == (18, 8)
    for row, neighbours in enumerate(lists):
        copy_of = row % 6
        want = {k * 6 + i for k in range(3) for i in (copy_of, *near[copy_of])} - {row}
        assert {*neighbours.tolist()} == want


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_pairs_are_drawn_from_lists_and_labelled_by_them(fraction):
    near = neighbourhoods.nearest_by_pixels(RNG.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8), 3)
    i, j, labels = map(
        np.asarray,
        jax.jit(neighbourhoods.draw_neighbours, static_argnums=2)(
            jax.random.key(1), near, 4000, fraction
        ),
    )
    for a, b, label in zip(i, j, labels, strict=True):
        assert label == (0 if b in near[a] or a in near[b] or a == b else 1)
    count = round(4000 * fraction)
    assert (labels[:count] == 0).all()
    # Of the others a few are similar by chance, and every image is drawn.
    assert 0.7 < labels[count:].mean() < 0.98
    assert {*j[count:].tolist()} == {*range(30)}
    assert {*i.tolist()} == {*range(30)}


def test_figures_of_a_map():
    # Two images of class 0 at 0, two of class 1 at 10; each with two more copies.
    points = np.array([[0.0, 0], [0.1, 0], [10, 0], [10.1, 0]])
    labels = np.tile([0, 0, 1, 1], 3)
    same = np.concatenate([points, points + 0.01, points - 0.01])
    assert neighbourhoods.nearest_of_class(same, labels, 3) == 1
    assert neighbourhoods.spread_of_copies(same, 3) < 0.01
    # Copies far from each other: all there is is their spread.
    apart = np.concatenate([points * 0, points * 0 + [5, 0], points * 0 - [5, 0]])
    assert neighbourhoods.spread_of_copies(apart, 3) == pytest.approx(1)
    assert neighbourhoods.nearest_of_class(points[[0, 2, 1, 3]], np.array([0, 1, 0, 1]), 1) == 1


def test_maps_are_learned_from_neighbours(tmp_path, capsys, monkeypatch):
    (tmp_path / "tfds").mkdir()
    shapes, embedding_map = {}, neighbourhood_maps.plots.embedding_map

    def drawn(embeddings, labels, *, images, class_names):
        shapes[("neighbours", "copies", "invariant")[len(shapes)]] = images.shape[1:]
        return embedding_map(embeddings, labels, images=images, class_names=class_names)

    monkeypatch.setattr(neighbourhood_maps.plots, "embedding_map", drawn)
    config = drlim.Config(
        steps=150, batch_size=32, runs=tmp_path, tfds_dir=tmp_path / "tfds", name="run"
    )
    folder = drlim.main(config)
    printed = capsys.readouterr().out
    assert "invariant" in printed
    for name, times in (("neighbours", 1), ("copies", 5), ("invariant", 5)):
        assert (folder / f"map-{name}.png").read_bytes().startswith(b"\x89PNG")
        saved = np.load(folder / f"map-{name}.npz")
        assert saved["embeddings"].shape == (len(saved["classes"]), 2)
        assert len(saved["classes"]) % times == 0
        # Moves are in proportion to the width: at most 2 of 8 pixels, and a border as wide.
        assert shapes[name] == ((8, 8, 1) if times == 1 else (12, 12, 1))
    rows = [line.split("|")[1:4] for line in (folder / "results.md").read_text().splitlines()[2:]]
    spread = {name.strip(): value.strip() for name, _, value in rows}
    # What is known of copies draws them together.
    assert float(spread["invariant"]) < 0.5 * float(spread["copies"])
    assert float(rows[0][1]) > 0.8


def test_maps_are_of_images_of_ones_own(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        drlim,
        "write_maps",
        lambda folder, train, test, **options: drawn.update(train=train, test=test),
    )
    own = {
        "data": write_folder(tmp_path / "my photos", pictures()),
        "runs": tmp_path / "runs",
        "image_size": 8,
    }
    folder = drlim.main(drlim.Config(**own, images=12, neighbours=2))
    assert folder.name == "drlim-my-photos-1"
    # Some of every class, though images are sorted by class.
    assert len(drawn["train"].classes) == 12
    assert {*drawn["train"].classes.tolist()} == {*drawn["test"].classes.tolist()} == {0, 1, 2}
    drlim.main(drlim.Config(**own, classes=("dog", "emu"), neighbours=2))
    assert {*drawn["train"].classes.tolist()} == {1, 2}
    with pytest.raises(ValueError, match=r"--classes cow has no training .* are cat, dog, emu: "):
        drlim.main(drlim.Config(**own, classes=("cow",)))
    vectors, pairs = tmp_path / "vectors.npz", tmp_path / "pairs.npz"
    np.savez(vectors, embeddings=RNG.normal(size=(40, 3)), classes=np.arange(40) % 2)
    np.savez(pairs, left=RNG.normal(size=(40, 3)), right=np.ones((40, 3)), same=np.arange(40) % 2)
    for data, words in ((vectors, "has vectors, and copies are of images"), (pairs, "given pairs")):
        with pytest.raises(ValueError, match=words):
            drlim.main(drlim.Config(data=data, runs=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"neighbours": 0}, "--neighbours must be above 0"),
        ({"neighbours": 1000}, "--neighbours must be below the .* training images"),
        ({"margin": -1.0}, "--margin must be above 0"),
        ({"positive_fraction": 1.0}, r"--positive_fraction must be in \(0, 1\)"),
        (
            {"classes": ("11",)},
            "--classes 11 has no training images in digits, whose classes are 0, 1",
        ),
        ({"overwrite": True}, "--overwrite needs the --name"),
    ],
)
def test_errors(tmp_path, options, words):
    config = drlim.Config(**{"runs": tmp_path / "runs", "tfds_dir": tmp_path, **options})
    with pytest.raises(ValueError, match=words):
        drlim.main(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"positive_fraction": 2.0}, "positive_fraction must be in"),
        (
            {"neighbours": np.zeros(4, int)},
            r"neighbours must be \[N, S\] with a row for each of the 4",
        ),
        ({"neighbours": np.zeros((3, 2), int)}, r"neighbours must be .*, got \[3, 2\]"),
    ],
)
def test_lists_of_similar_images_are_checked(changed, words):
    options = {"neighbours": np.zeros((4, 2), int), "steps": 2} | changed
    encoder, images = network(models.MLP, (8, 8, 1)), np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=words):
        neighbourhoods.train_on_neighbours(encoder, images, options.pop("neighbours"), **options)
