import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from paper_repro.errors import ConfigurationError, DataError
from paper_repro.tasks import load_dataset
from paper_repro.tasks.curves import CLEARANCE, DASH, GAP, REFERENCE_SIDE, draw, make_pictures, make_scene
from paper_repro.tasks.pathfinder import DIFFICULTIES, THICKNESS, Pathfinder, read_pictures

LEVELS = list(DIFFICULTIES)


def scenes(level, count, seed=0):
    difficulty = DIFFICULTIES[level]
    random = np.random.default_rng(seed)
    return [make_scene(random, contour=difficulty.contour, continuity=difficulty.continuity) for _ in range(count)]


def connected(scene):
    """Say whether the discs lie on one curve, from a large picture of the dashes alone: dashes closer than a gap belong together."""
    scale = 16
    side = REFERENCE_SIDE * scale
    ink = draw(scene, side, THICKNESS, with_discs=False) > 0.3
    # Grown by a bit more than half of the gap, dashes of one curve meet; those of two are further apart than that.
    reach = (0.5 * GAP + 0.5 * (CLEARANCE - THICKNESS)) / 2 * scale
    grown = ndimage.distance_transform_edt(~ink) <= reach
    parts, _ = ndimage.label(grown)
    ends = [parts[int(y * side), int(x * side)] for x, y in scene.discs]
    assert min(ends) > 0, "a disc is on no curve"
    return int(ends[0] == ends[1])


@pytest.mark.parametrize("level", LEVELS)
def test_labels_are_what_an_independent_test_of_the_drawn_curves_says(level):
    for scene in scenes(level, 60):
        assert connected(scene) == scene.label


@pytest.mark.parametrize("level", LEVELS)
def test_curves_have_the_published_dashes_and_keep_apart(level):
    contour = DIFFICULTIES[level].contour
    for scene in scenes(level, 20):
        counts = np.bincount(scene.curve)
        assert counts[:2].tolist() == [contour, contour]
        assert set(counts[2:].tolist()) <= {0, contour // 3}
        begin, end = scene.dashes[:, :2] * REFERENCE_SIDE, scene.dashes[:, 2:] * REFERENCE_SIDE
        np.testing.assert_allclose(np.linalg.norm(end - begin, axis=1), DASH)
        along = np.linspace(0, 1, 9)[None, :, None]
        points = begin[:, None] + along * (end - begin)[:, None]  # (dashes, 9, 2)
        distances = np.linalg.norm(points[:, :, None, None] - points[None, None], axis=-1).min(axis=(1, 3))
        foreign = scene.curve[:, None] != scene.curve[None]
        # Clearance is kept between points half a dash apart, so between two of them it may be a little less.
        assert distances[foreign].min() > np.sqrt(CLEARANCE**2 - DASH**2 / 8)
        ends = scene.discs * REFERENCE_SIDE
        for disc in ends:
            assert min(np.linalg.norm(begin - disc, axis=1).min(), np.linalg.norm(end - disc, axis=1).min()) < 1e-9


@pytest.mark.parametrize("level", LEVELS)
def test_labels_are_balanced_and_not_given_away_by_what_is_easy_to_see(level):
    found = scenes(level, 1500, seed=1)
    labels = np.array([scene.label for scene in found])
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(1500)
    discs = np.array([scene.discs for scene in found])
    features = {
        "distance": np.linalg.norm(discs[:, 0] - discs[:, 1], axis=1),
        "dashes": np.array([len(scene.dashes) for scene in found]) / 100,
        "centre": np.abs(discs - 0.5).max(axis=(1, 2)),
        "place": discs.mean(axis=(1, 2)),
    }
    for name, values in features.items():
        assert share_told_by(values, labels) < 0.58, name


def share_told_by(values, labels):
    """Return the share of right labels of the best guess from a histogram, on pictures that are not in it."""
    bins = np.clip((values * REFERENCE_SIDE).astype(int), 0, REFERENCE_SIDE)
    half = len(labels) // 2
    counts = np.bincount(bins[:half], minlength=REFERENCE_SIDE + 1)
    ones = np.bincount(bins[:half], labels[:half], minlength=REFERENCE_SIDE + 1)
    return ((2 * ones > counts)[bins[half:]] == labels[half:]).mean()


@pytest.mark.parametrize("level", LEVELS)
def test_pictures_are_the_scenes_drawn_one_after_the_other(level):
    difficulty = DIFFICULTIES[level]
    pictures, labels, made = make_pictures(
        np.random.default_rng(3),
        12,
        contour=difficulty.contour,
        side=32,
        continuity=difficulty.continuity,
        thickness=THICKNESS,
    )
    assert made == 12
    for picture, label, scene in zip(pictures, labels, scenes(level, 12, seed=3), strict=True):
        np.testing.assert_array_equal(picture, np.floor(255 * draw(scene, 32, THICKNESS) + 0.5))
        assert label == scene.label
        assert picture.max() > 240


def test_a_dash_is_drawn_where_it_is():
    scene = scenes("easy", 1)[0]
    side = 320
    picture = draw(scene, side, THICKNESS, with_discs=False)
    rows, columns = np.nonzero(picture > 0.5)
    points = np.stack([columns + 0.5, rows + 0.5], axis=1) / side
    begin, end = scene.dashes[:, :2], scene.dashes[:, 2:]
    t = np.clip(
        ((points[:, None] - begin) * (end - begin)).sum(-1) / ((end - begin) ** 2).sum(-1), 0, 1
    )  # (points, dashes)
    distance = np.linalg.norm(points[:, None] - begin - t[..., None] * (end - begin), axis=-1).min(axis=1)
    assert distance.max() * REFERENCE_SIDE < 0.5 * THICKNESS * np.sqrt(2)
    area = (picture > 0.375).mean() * REFERENCE_SIDE**2
    assert area == pytest.approx(len(scene.dashes) * DASH * THICKNESS, rel=0.05)


def test_curves_without_room_are_said():
    _, _, made = make_pictures(np.random.default_rng(0), 2, contour=400, side=32, continuity=50.0, thickness=1.0)
    assert made == 0
    assert make_scene(np.random.default_rng(0), contour=400, continuity=50.0) is None


def test_pixels_run_from_minus_one_to_one():
    dataset = Pathfinder(n_train=20, n_validation=5, n_test=5).load()
    inputs = dataset.train.batch(slice(None)).inputs
    assert inputs.shape == (20, 1024, 1)
    assert (inputs.min(), inputs.max()) == (-1, 1)


def png(picture):
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def write_files(root, level="easy", per_list=40, n_lists=3, as_array=False):
    """Write pictures as the Long Range Arena has them; return them and their labels."""
    folder = root / DIFFICULTIES[level].folder
    pictures, labels, _ = make_pictures(
        np.random.default_rng(7), per_list * n_lists, contour=6, side=32, continuity=1.8, thickness=1.0
    )
    (folder / "metadata").mkdir(parents=True)
    for number in range(n_lists):
        (folder / f"imgs/{number}").mkdir(parents=True)
        rows = []
        for i in range(per_list):
            place = number * per_list + i
            (folder / f"imgs/{number}/sample_{i}.png").write_bytes(png(pictures[place]))
            rows.append([f"imgs/{number}", f"sample_{i}.png", str(i), str(labels[place]), "1.8", "6", "2.0", "2"])
        path = folder / f"metadata/{number}.npy"
        if as_array:
            np.save(path, np.array(rows))
        else:
            path.write_text("".join(" ".join(row) + "\n" for row in rows))
    return pictures, labels


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("inside", ["", "lra_release/lra_release/pathfinder32"])
def test_files_give_what_was_written_in_the_order_of_the_lists(tmp_path, inside, as_array):
    pictures, labels = write_files(tmp_path / inside, n_lists=11, per_list=12, as_array=as_array)
    found, found_labels = read_pictures(tmp_path / inside / "curv_baseline/metadata")
    np.testing.assert_array_equal(found, pictures)
    np.testing.assert_array_equal(found_labels, labels)
    dataset = load_dataset("pathfinder", tmp_path, {"source": "files"})
    ones = int(labels.sum())
    counts = (ones, 132 - ones)
    assert len(dataset.validation) == sum((count + 1) // 10 for count in counts)  # the ninth of ten of a class
    assert len(dataset.test) == sum(count // 10 for count in counts)
    assert len(dataset.train) == 132 - len(dataset.validation) - len(dataset.test)
    assert torch.equal(dataset.train.inputs[0, :, 0], torch.from_numpy(pictures[0].ravel()))


def test_other_difficulties_stand_in_other_folders(tmp_path):
    write_files(tmp_path, "hard")
    assert len(load_dataset("pathfinder", tmp_path, {"source": "files", "difficulty": "hard"}).train) > 90
    with pytest.raises(DataError) as caught:
        load_dataset("pathfinder", tmp_path, {"source": "files", "difficulty": "intermediate"})
    for part in ("Pathfinder (intermediate)", f"{tmp_path}/curv_contour_length_9/metadata", "lra_release.gz"):
        assert part in str(caught.value)


def test_an_empty_picture_is_left_out_and_many_are_an_error(tmp_path, monkeypatch):
    pictures, _ = write_files(tmp_path)
    (tmp_path / "curv_baseline/imgs/0/sample_17.png").write_bytes(b"")
    lists = tmp_path / "curv_baseline/metadata"
    with pytest.raises(DataError, match="1 of 120 pictures are empty files; unpack the archive again"):
        read_pictures(lists)
    monkeypatch.setattr("paper_repro.tasks.pathfinder.EMPTY_FILES", 0.01)
    found, labels = read_pictures(lists)
    np.testing.assert_array_equal(found, np.delete(pictures, 17, axis=0))
    assert len(labels) == 119


def test_damaged_pictures_are_named(tmp_path):
    pictures, _ = write_files(tmp_path)
    path = tmp_path / "curv_baseline/imgs/1/sample_3.png"
    lists = tmp_path / "curv_baseline/metadata"
    good = png(pictures[43])
    for content in (good[:8], good[:20], good[:33], good[:-30], b"GIF89a", good[:45] + b"\0" * 40 + good[85:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"sample_3.png: not a picture, or damaged"):
            read_pictures(lists)
    path.write_bytes(png(np.zeros((32, 31), np.uint8)))
    with pytest.raises(DataError, match=r"sample_3.png: pictures must be 32 x 32 pixels, found 31 x 32"):
        read_pictures(lists)
    path.unlink()
    with pytest.raises(DataError, match=r"sample_3.png: cannot be read \(No such file.*but its list names it"):
        read_pictures(lists)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("0.npy", b"", "0.npy: has no pictures"),
        ("0.npy", b"\xff\xfe\x00", "0.npy: neither text nor an array of text"),
        ("0.npy", b"\x93NUMPY\x01\x00v", "0.npy: neither text nor an array of text"),
        ("0.npy", b"imgs/0 sample_0.png 0\n", "0.npy, entry 1: folder, name, number and label"),
        ("0.npy", b"imgs/0 sample_0.png 0 2 1.8\n", "0.npy, entry 1: folder, name, number and label"),
        ("first.npy", b"", r"lists of pictures are called 0.npy, 1.npy, ...; found .*first.npy"),
    ],
)
def test_damaged_lists_are_named(tmp_path, name, content, words):
    write_files(tmp_path, n_lists=1)
    (tmp_path / "curv_baseline/metadata" / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_pictures(tmp_path / "curv_baseline/metadata")


def test_pickled_lists_are_refused(tmp_path):
    write_files(tmp_path, n_lists=1)
    np.save(tmp_path / "curv_baseline/metadata/0.npy", np.array([["imgs/0", 3]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="neither text nor an array of text"):
        read_pictures(tmp_path / "curv_baseline/metadata")


def test_options_of_the_generator_do_not_go_with_files():
    with pytest.raises(ConfigurationError, match="n_train is set to 5, but pathfinder is read from files"):
        load_dataset("pathfinder", options={"source": "files", "n_train": 5})
