import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cofield.data.files import read_image, read_labels, read_panoptic, read_points, scaled
from cofield.geometry import project

FINITE = st.floats(-1e6, 1e6, width=32)
TABLES = st.tuples(st.integers(1, 40), st.sampled_from([4, 5, 6])).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=FINITE)
)


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_points_come_back_as_they_were_written(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("points") / "a.bin"
    table.tofile(path)
    assert (read_points(path, table.shape[1]) == table).all()


@given(TABLES, st.data())
@settings(max_examples=50, deadline=None)
def test_a_cut_off_scan_is_refused_by_name_unless_whole_points_are_left(tmp_path_factory, table, data):
    path = tmp_path_factory.mktemp("points") / "cut.bin"
    path.write_bytes(table.tobytes()[: data.draw(st.integers(0, table.nbytes - 1))])
    whole, rest = divmod(path.stat().st_size, 4 * table.shape[1])
    if rest or not whole:
        with pytest.raises(ValueError, match=r"cut\.bin.*fetch it again"):
            read_points(path, table.shape[1])
    else:
        assert (read_points(path, table.shape[1]) == table[:whole]).all()


@given(TABLES, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
@settings(max_examples=30, deadline=None)
def test_a_point_that_is_not_finite_is_refused(tmp_path_factory, table, broken, data):
    row, column = (data.draw(st.integers(0, n - 1)) for n in table.shape)
    table[row, column] = broken
    path = tmp_path_factory.mktemp("points") / "nan.bin"
    table.tofile(path)
    with pytest.raises(ValueError, match=rf"nan\.bin: 1 of {len(table)} points are not finite"):
        read_points(path, table.shape[1])


@given(hnp.arrays(np.uint32, st.integers(1, 50)), st.integers(-2, 2))
@settings(max_examples=50, deadline=None)
def test_labels_are_one_a_point_or_refused(tmp_path_factory, words, missing):
    path = tmp_path_factory.mktemp("labels") / "a.label"
    words.tofile(path)
    if missing:
        with pytest.raises(
            ValueError, match=rf"a\.label holds {len(words)} labels for a scan of {len(words) + missing}"
        ):
            read_labels(path, "<u4", len(words) + missing)
    else:
        assert (read_labels(path, "<u4", len(words)) == words).all()


def test_panoptic_labels_come_back_and_a_broken_archive_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", data=np.array([17001, 24000], np.uint16))
    assert read_panoptic(tmp_path / "a.npz", 2).tolist() == [17001, 24000]
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"b\.npz is no panoptic label file"):
        read_panoptic(tmp_path / "b.npz", 2)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_panoptic_labels_with_hurt_bytes_are_refused_by_name_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("panoptic") / "hurt.npz"
    np.savez_compressed(path, data=np.arange(300, dtype=np.uint16) % 7 * 1000)
    whole = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        named = len(read_panoptic(path, 300)) == 300
    except ValueError as problem:
        named = "hurt.npz" in str(problem)
    assert named


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.bin is missing; fetch"):
        read_points(tmp_path / "gone.bin", 4)
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing"):
        read_image(tmp_path / "gone.png")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    path = tmp_path / f"broken.{ending}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    assert read_image(path)[0].shape == (3, 40, 60)
    for junk in (whole[: len(whole) // 2], b"no image", b""):
        path.write_bytes(junk)
        for scale in (1.0, 0.5):
            with pytest.raises(OSError, match=rf"broken\.{ending} cannot be decoded .* fetch it again"):
                read_image(path, scale)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_bytes_that_are_no_jpeg_are_refused_by_name_and_never_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(smooth(24, 40)).save(folder / "whole.jpg")
    whole = bytearray((folder / "whole.jpg").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    (folder / "hurt.jpg").write_bytes(whole)
    try:
        image, size = read_image(folder / "hurt.jpg")
    except OSError as problem:
        named = "hurt.jpg cannot be decoded" in str(problem)
    else:
        named = image.shape[1:] == size
    assert named


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_what_pillow_sees(tmp_path, mode):
    Image.fromarray(smooth(38, 64)).convert(mode).save(tmp_path / "a.jpg", progressive=mode == "L")
    image, size = read_image(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as full:
        expected = torch.from_numpy(np.array(full.convert("RGB"))).permute(2, 0, 1) / 255
    assert size == (38, 64)
    assert (image - expected).abs().max() < (1.01 if mode == "CMYK" else 0.01) / 255


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without detail finer than a tenth of its size."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(9 * x / width + k) * np.cos(7 * y / height - k) for k in range(3)]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


def from_reduced(path, scale: float) -> torch.Tensor:
    """Errors in 255ths against decoding all of an image and resizing it with Pillow."""
    image, (height, width) = read_image(path, scale)
    assert image.shape == (3, round(height * scale), round(width * scale))
    with Image.open(path) as full:
        assert full.size == (width, height)
        expected = np.array(full.resize((image.shape[2], image.shape[1])), np.float32)
    return (image * 255 - torch.from_numpy(expected).permute(2, 0, 1)).abs().flatten()


@pytest.mark.parametrize("scale", [0.5, 0.44, 0.23, 0.9])
@pytest.mark.parametrize("size", [(360, 644), (361, 643)])
def test_a_reduced_image_is_the_resized_one(tmp_path, scale, size):
    Image.fromarray(smooth(*size)).save(tmp_path / "a.jpg", quality=95)
    assert (from_reduced(tmp_path / "a.jpg", scale) < 2.01).float().mean() > 0.999
    Image.fromarray(smooth(*size)).save(tmp_path / "a.png")
    assert from_reduced(tmp_path / "a.png", scale).max() < 2.01  # Pillow rounds twice


@pytest.mark.parametrize("scale", [0.5, 0.44, 0.33, 0.25])
def test_real_images_are_resized_to_2_255ths(realdata, scale):
    paths = sorted(realdata.glob("nuscenes/samples/CAM_*/*.jpg"))[::3]
    error = torch.cat([from_reduced(path, scale) for path in paths])
    assert error.mean() < 0.5
    assert (error < 2.01).float().mean() > 0.98


def test_a_reduced_image_is_seen_in_the_same_directions():
    pix_T_cam = torch.tensor([[500.0, 0, 322, 0], [0, 510, 180, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    point = torch.tensor([[1.0, -2.0, 7.0]])
    full, depth = project(pix_T_cam, point)
    small, same = project(scaled(pix_T_cam, (361, 643), torch.zeros(3, 180, 322)), point)
    assert torch.allclose(small, full * torch.tensor([322 / 643, 180 / 361]))
    assert torch.equal(depth, same)
