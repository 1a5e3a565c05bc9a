from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from cofield.classes import UNKNOWN
from cofield.data.fractions import Subset
from cofield.data.segment_cache import SegmentCache, command, precompute
from cofield.data.segments import (
    SEGMENTERS,
    Exact,
    ExactMerged,
    ExactSplit,
    Felzenszwalb,
    Sam,
    boxes_of,
    described,
    favourites,
    flattened,
    renumbered,
    segmenter_called,
    stability,
)
from cofield.data.simulate import World
from cofield.data.stored import bare
from cofield.frame import Camera, Frame, collate
from streets import Hand, camera, frame


@cache
def street() -> Frame:
    return World("tiny", town="report", split="val")[3]


def truth(rows: list[str], things: list[str] | None = None) -> Camera:
    """A camera whose classes and things are digits, a dot where there is none."""

    def digits(lines: list[str]) -> torch.Tensor:
        return torch.tensor([[UNKNOWN if c == "." else int(c) for c in line] for line in lines])

    semantics = digits(rows)
    none = torch.full_like(semantics, UNKNOWN)
    blank = camera(height=len(rows), width=len(rows[0]))
    return replace(blank, semantics=semantics, instances=none if things is None else digits(things))


def same_partition(one: torch.Tensor, other: torch.Tensor) -> bool:
    pairs = torch.stack([one.flatten(), other.flatten()], -1).unique(dim=0)
    return len(pairs) == len(one.unique()) == len(other.unique())


def masks(*pictures: list[str]) -> torch.Tensor:
    return torch.tensor([[[c == "#" for c in line] for line in lines] for lines in pictures])


def test_an_exact_segment_is_one_class_one_thing_and_connected() -> None:
    seen = truth(
        ["11.22", "11122", "33311", "44311"],
        ["00..5", "00..6", ".....", "77.11"],
    )
    expected = torch.tensor([[0, 0, -1, 1, 2], [0, 0, 3, 1, 4], [5, 5, 5, 6, 6], [7, 7, 5, 8, 8]])
    assert same_partition(Exact()(seen, "a"), expected)


def test_touching_at_a_corner_is_not_touching() -> None:
    assert Exact()(truth(["12", "21"]), "a").unique().tolist() == [0, 1, 2, 3]


def test_exact_segments_of_the_world_are_pure_and_cover_all_that_has_a_class() -> None:
    for seen in street().cameras:
        label = Exact()(seen, "a")
        assert seen.semantics is not None
        assert seen.instances is not None
        assert torch.equal(label == UNKNOWN, seen.semantics == UNKNOWN)
        for segment in range(int(label.max()) + 1):
            inside = label == segment
            assert len(seen.semantics[inside].unique()) == len(seen.instances[inside].unique()) == 1


def test_exact_segments_need_the_truth_of_pixels() -> None:
    with pytest.raises(ValueError, match="no per-pixel truth"):
        Exact()(bare(street()).cameras[0], "a")


def test_split_segments_lie_within_exact_ones_and_are_more() -> None:
    seen = street().cameras[0]
    whole, fine = Exact()(seen, "a"), ExactSplit(parts=4, smallest=20)(seen, "a")
    assert fine.max() > whole.max() + 10
    for piece in range(int(fine.max()) + 1):
        assert len(whole[fine == piece].unique()) == 1
    for segment in range(int(whole.max()) + 1):
        inside = whole == segment
        assert len(fine[inside].unique()) <= min(4, max(1, int(inside.sum()) // 20))


def test_merged_segments_are_unions_of_exact_ones() -> None:
    seen = street().cameras[0]
    whole, coarse = Exact()(seen, "a"), ExactMerged(share=0.3)(seen, "a")
    for segment in range(int(whole.max()) + 1):
        assert len(coarse[whole == segment].unique()) == 1
    assert 0.5 < int(coarse.max() + 1) / int(whole.max() + 1) < 0.9
    assert same_partition(ExactMerged(share=0.0)(seen, "a"), whole)


def test_segments_that_touch_nothing_are_merged_with_nothing() -> None:
    seen = truth(["1.2.3"])
    assert ExactMerged(share=1.0)(seen, "a").tolist() == [[0, -1, 1, -1, 2]]
    assert len(ExactMerged(share=1.0)(truth(["123"]), "a").unique()) < 3


def test_what_is_drawn_depends_on_frame_camera_and_seed_alone() -> None:
    seen = street().cameras[0]
    for first, other in ((ExactSplit(), ExactSplit(seed=1)), (ExactMerged(), ExactMerged(seed=1))):
        assert torch.equal(first(seen, "a"), first(seen, "a"))
        assert not torch.equal(first(seen, "a"), first(seen, "b"))
        assert not torch.equal(first(seen, "a"), first(replace(seen, name="other"), "a"))
        assert not torch.equal(first(seen, "a"), other(seen, "a"))


def test_superpixels_of_flat_colours_are_the_colours() -> None:
    image = torch.zeros(3, 40, 60)
    image[0, :, 30:] = 1.0
    image[1, 20:] = 1.0
    label = Felzenszwalb(blur=0.0)(replace(camera(), image=image), "a")
    assert same_partition(label, image[0] + 2 * image[1])


def test_finer_superpixels_are_more_and_less_mixed() -> None:
    counts, right = [], []
    for name in ("felzenszwalb-fine", "felzenszwalb", "felzenszwalb-coarse"):
        found = 0
        best, all_known = 0.0, 0
        for seen in street().cameras:
            label = SEGMENTERS[name](seen, "a")
            assert seen.semantics is not None
            known = seen.semantics != UNKNOWN
            table = torch.zeros(int(label.max()) + 1, 16).index_put_(
                (label[known], seen.semantics[known]), torch.tensor(1.0), accumulate=True
            )
            assert torch.bincount(label.flatten()).min() >= 16
            found += len(table)
            best += float(table.amax(1).sum())
            all_known += int(known.sum())
        counts.append(found)
        right.append(best / all_known)
    assert counts[0] > 1.25 * counts[1] > 1.25 * 1.25 * counts[2]
    assert min(right[:2]) > 0.95
    assert min(right[:2]) > right[2] > 0.9


def test_pixels_that_are_no_image_have_no_segment() -> None:
    seen = street().cameras[0]
    valid = torch.ones_like(seen.image[0], dtype=torch.bool)
    valid[:, :50] = False
    for segmenter in (Felzenszwalb(), Exact(), ExactSplit()):
        label = segmenter(replace(seen, valid=valid), "a")
        assert (label[:, :50] == UNKNOWN).all()
        numbers = label[label != UNKNOWN].unique()
        assert torch.equal(numbers, torch.arange(len(numbers)))


def test_of_overlapping_masks_the_smaller_wins_and_of_equal_ones_the_first() -> None:
    found = flattened(
        masks(
            ["####", "####", "...."],
            [".##.", "....", "...."],
            ["..##", "....", "...."],
        )
    )
    assert found.tolist() == [[0, 1, 1, 2], [0, 0, 0, 0], [-1, -1, -1, -1]]
    hidden = flattened(masks(["##"], ["#."], [".#"]))
    assert hidden.tolist() == [[0, 1]]
    assert flattened(torch.zeros(0, 2, 3, dtype=torch.bool)).tolist() == [[-1] * 3] * 2


def test_the_order_of_masks_of_different_sizes_does_not_matter() -> None:
    some = masks(["####", "####"], ["##..", "#..."], [".##.", "...."])
    assert same_partition(flattened(some), flattened(some[[2, 0, 1]]))


def test_numbers_have_no_gaps_after_renumbering() -> None:
    assert renumbered(torch.tensor([[7, -1], [3, 7]])).tolist() == [[1, -1], [0, 1]]
    assert renumbered(torch.tensor([[7, 3]])).tolist() == [[1, 0]]


def test_a_mask_is_stable_when_its_threshold_hardly_matters() -> None:
    sharp = torch.tensor([[[9.0, 9.0, -9.0, -9.0]]])
    soft = torch.tensor([[[2.0, 0.5, -0.5, -2.0]]])
    none = torch.full((1, 1, 4), -5.0)
    torch.testing.assert_close(stability(torch.cat([sharp, soft, none])), torch.tensor([1.0, 1 / 3, 0.0]))


def test_boxes_touch_the_outermost_pixels() -> None:
    assert boxes_of(masks(["....", ".#..", "..#."], ["####", "####", "####"])).tolist() == [[1, 1, 3, 3], [0, 0, 4, 3]]


def test_of_boxes_that_overlap_the_best_stay() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [0, 0, 10, 5]])
    scores = torch.tensor([0.9, 0.95, 0.5, 0.8])
    # The second covers nine tenths of the first, the last only five ninths of the second.
    assert favourites(boxes, scores, 0.7).tolist() == [1, 3, 2]
    assert favourites(boxes, scores, 0.95).tolist() == [1, 0, 3, 2]
    assert favourites(boxes[:0], scores[:0], 0.7).tolist() == []


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a Segment Anything of random weights and 64 pixels."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `sam`")
    folder = str(tmp_path_factory.mktemp("sam") / "tiny-sam")
    vision = {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_dim": 32,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16, "num_hidden_layers": 2,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
        model = transformers.SamModel(config)
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    low = {"height": 32, "width": 32}
    transformers.SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size=size, mask_size={"longest_edge": 32}, mask_pad_size=low
    ).save_pretrained(folder)
    return folder


def test_sam_gives_masks_of_the_images_own_size_wherever_it_is_asked(tiny_sam: str) -> None:
    everything = Sam(tiny_sam, side=4, iou=-torch.inf, stability=0.0)
    image = street().cameras[0].image[:, :, :150]
    found, scores = everything.propose(image)
    assert found.shape == (len(scores), 64, 150)
    assert 16 < len(found) <= 4 * 4 * 3
    assert found.flatten(1).any(1).all()
    again, _ = everything.propose(image)
    assert torch.equal(found, again)
    strict, good = Sam(tiny_sam, side=4, iou=float(scores.median()), stability=0.0).propose(image)
    assert torch.equal(good, scores[scores >= scores.median()])
    assert torch.equal(strict, found[scores >= scores.median()])
    assert Sam(tiny_sam, side=4, iou=torch.inf).propose(image)[0].shape == (0, 64, 150)


def test_sams_label_image_is_made_of_its_masks(tiny_sam: str) -> None:
    seen = street().cameras[0]
    everything = Sam(tiny_sam, side=4, iou=-torch.inf, stability=0.0)
    label = everything(seen, "a")
    assert label.shape == (64, 160)
    found, scores = everything.propose(seen.image)
    chosen = favourites(boxes_of(found), scores, 0.7)
    assert len(chosen) < len(found)
    assert torch.equal(label, flattened(found[chosen]))
    assert (Sam(tiny_sam, side=2, iou=torch.inf)(seen, "a") == UNKNOWN).all()


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `sam`")
    with pytest.raises(ValueError, match=r"no SAM weights at .*nowhere"):
        Sam(str(tmp_path / "nowhere"))(street().cameras[0], "a")


def test_segmenters_have_names_and_only_sam_has_weights() -> None:
    assert segmenter_called("felzenszwalb") == Felzenszwalb()
    assert segmenter_called("sam", "here/weights") == Sam("here/weights")
    with pytest.raises(ValueError, match="there is felzenszwalb, "):
        segmenter_called("magic")
    with pytest.raises(ValueError, match="exact has no weights"):
        segmenter_called("exact", "weights")


def test_a_description_tells_settings_apart_and_not_folders() -> None:
    assert described(Felzenszwalb()) != described(Felzenszwalb(scale=20.0))
    assert described(Sam("a/b/vit")) == described(Sam("c/vit"))
    assert described(Exact()) == {"kind": "Exact"}


def hand() -> Hand:
    return Hand(frames=4)


def test_what_was_kept_comes_back_exactly(tmp_path: Path) -> None:
    cache, seen = SegmentCache(tmp_path, "world", Exact()), street()
    labels = [Exact()(each, seen.token) for each in seen.cameras]
    cache.write(seen, labels)
    assert all(torch.equal(a, b) for a, b in zip(cache.read(seen), labels, strict=True))
    assert torch.equal(cache.of_batch(collate([seen]))[0], torch.stack(labels))
    assert [path.name for path in tmp_path.iterdir()] == [f"{seen.token}.npz"]


def test_a_file_is_a_twentieth_of_its_label_images(tmp_path: Path) -> None:
    cache, seen = SegmentCache(tmp_path, "world", Exact()), street()
    cache.write(seen, [Exact()(each, seen.token) for each in seen.cameras])
    assert cache.path(seen.token).stat().st_size < 4 * 64 * 160 * 2 / 12


def test_numbers_up_to_sixteen_bits_are_kept_and_more_are_refused(tmp_path: Path) -> None:
    cache = SegmentCache(tmp_path, "hand", Felzenszwalb())
    wide = frame("a", cameras=1, height=256, width=257)
    label = torch.arange(256 * 257).view(256, 257).clamp(max=65534)
    cache.write(wide, [label])
    assert torch.equal(cache.read(wide)[0], label)
    with pytest.raises(ValueError, match="coarser"):
        cache.write(wide, [torch.arange(256 * 257).view(256, 257)])


def test_smaller_images_of_a_batch_have_no_segments_beyond_their_border(tmp_path: Path) -> None:
    small, large = frame("small", height=16, width=40), frame("large", height=24, width=48)
    cache = SegmentCache(tmp_path, "hand", Felzenszwalb())
    for each in (small, large):
        cache.write(each, [torch.zeros(c.image.shape[-2:]).long() for c in each.cameras])
    found = cache.of_batch(collate([large, small]))
    assert found.shape == (2, 2, 24, 48)
    assert (found[0] == 0).all()
    assert (found[1, :, :16, :40] == 0).all()
    assert (found[1, :, 16:] == UNKNOWN).all()
    assert (found[1, :, :, 40:] == UNKNOWN).all()


def test_precomputing_reports_size_and_coverage_and_can_be_interrupted(tmp_path: Path) -> None:
    source, told = hand(), []

    def interrupt(done: int, of: int) -> None:
        told.append((done, of))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        precompute(source, Felzenszwalb(), tmp_path, progress=interrupt)
    assert told == [(1, 4), (2, 4)]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(stamps) == 2
    report = precompute(source, Felzenszwalb(), tmp_path)
    assert (report.frames, report.made, report.images) == (4, 2, 8)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    cache = SegmentCache(tmp_path, source.name, Felzenszwalb())
    labels = [label for i in range(4) for label in cache.read(source[i])]
    assert report.coverage == 1.0
    assert report.per_image == sum(int(label.max()) + 1 for label in labels) / 8
    assert "4 frames (2 new), 8 images" in str(report)
    assert precompute(source, Felzenszwalb(), tmp_path, frames=[1]).made == 0


def test_coverage_and_sizes_are_those_of_a_picture_one_can_count(tmp_path: Path) -> None:
    seen = truth(["1122", "1122", "33..", "3333"])
    source = Fixed(replace(frame(), cameras=(seen,)))
    report = precompute(source, Exact(), tmp_path)
    assert report.coverage == 14 / 16
    assert report.per_image == 3
    assert report.typical == 4
    valid = torch.ones(4, 4, dtype=torch.bool)
    valid[2, 2:] = False
    masked = Fixed(replace(frame("b"), cameras=(replace(seen, valid=valid),)))
    assert precompute(masked, Exact(), tmp_path).coverage == 1.0


class Fixed(Hand):
    """One frame."""

    def __init__(self, only: Frame) -> None:
        super().__init__(frames=1)
        object.__setattr__(self, "only", only)

    def __getitem__(self, index: int) -> Frame:
        return self.only  # pyright: ignore[reportAttributeAccessIssue]


def kept(folder: Path) -> tuple[SegmentCache, Frame]:
    cache, seen = SegmentCache(folder, "hand", Felzenszwalb()), frame("a")
    cache.write(seen, [Felzenszwalb()(each, "a") for each in seen.cameras])
    return cache, seen


def test_a_missing_file_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    cache, _ = kept(tmp_path)
    for read in (cache.read, lambda f: cache.of_batch(collate([f]))):
        with pytest.raises(
            FileNotFoundError, match=r"no segments of frame b.*b\.npz is missing.*cofield segments hand"
        ):
            read(frame("b"))


def test_segments_of_other_settings_or_another_source_are_refused(tmp_path: Path) -> None:
    cache, seen = kept(tmp_path)
    with pytest.raises(ValueError, match=r"segmenter \{.*160.*wanted is .*20"):
        replace(cache, segmenter=Felzenszwalb(scale=20.0)).read(seen)
    with pytest.raises(ValueError, match="source hand, wanted is elsewhere"):
        replace(cache, source="elsewhere").of_batch(collate([seen]))
    cache.path("a").rename(cache.path("b"))
    with pytest.raises(ValueError, match="frame a, wanted is b"):
        cache.read(frame("b"))
    with pytest.raises(ValueError, match="segmenter"):
        precompute(Subset(hand(), [0]), Exact(), fill(tmp_path / "other"))


def fill(folder: Path) -> Path:
    precompute(Subset(hand(), [0]), Felzenszwalb(), folder)
    return folder


def test_segments_of_images_of_another_size_are_refused(tmp_path: Path) -> None:
    cache, _ = kept(tmp_path)
    for other in (frame("a", height=24), frame("a", width=32), frame("a", height=8)):
        with pytest.raises(ValueError, match=r"of an image of 16×40"):
            cache.read(other)
        with pytest.raises(ValueError, match=r"of an image of 16×40"):
            cache.of_batch(collate([other]))
    with pytest.raises(ValueError, match=r"are 16×40, its image 24×40"):
        cache.write(frame("c", height=24), [torch.zeros(16, 40).long()] * 2)


def test_segments_of_other_images_of_the_same_size_are_refused(tmp_path: Path) -> None:
    cache, seen = kept(tmp_path)
    turned = replace(seen, cameras=tuple(replace(c, image=c.image.flip(-1)) for c in seen.cameras))
    grainy = replace(seen, cameras=tuple(replace(c, image=(c.image * 255).round() / 255) for c in seen.cameras))
    cache.read(grainy)
    cache.of_batch(collate([grainy]))
    with pytest.raises(ValueError, match="another image"):
        cache.read(turned)
    with pytest.raises(ValueError, match="another image"):
        cache.of_batch(collate([turned]))


def test_segments_of_other_cameras_are_refused(tmp_path: Path) -> None:
    cache, seen = kept(tmp_path)
    with pytest.raises(ValueError, match="is of cameras"):
        cache.read(replace(seen, cameras=seen.cameras[::-1]))
    with pytest.raises(ValueError, match="is of 2 cameras, the frame has 1"):
        cache.of_batch(collate([replace(seen, cameras=seen.cameras[:1])]))


def test_a_frame_without_cameras_has_nothing_to_segment(tmp_path: Path) -> None:
    blind = replace(frame("a"), cameras=())
    with pytest.raises(ValueError, match="frame a of hand has no cameras"):
        precompute(Fixed(blind), Felzenszwalb(), tmp_path)
    with pytest.raises(ValueError, match="frame a has no cameras"):
        SegmentCache(tmp_path, "hand", Felzenszwalb()).of_batch(collate([blind]))
    with pytest.raises(ValueError, match="no frames to segment"):
        precompute(hand(), Felzenszwalb(), tmp_path, frames=[])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    cache, seen = kept(tmp_path)
    whole = cache.path("a").read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        cache.path("a").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz holds no segments"):
            cache.read(seen)
    np.savez(cache.path("a"), other=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz holds no segments"):
        cache.read(seen)


def test_a_byte_that_changed_on_disk_is_noticed_or_harmless(tmp_path: Path) -> None:
    cache, seen = kept(tmp_path)
    whole, labels = cache.path("a").read_bytes(), cache.read(seen)
    noticed, places = 0, range(0, len(whole), max(1, len(whole) // 60))
    for place in places:
        cache.path("a").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            again = cache.read(seen)
        except ValueError as problem:
            noticed += "a.npz" in str(problem)
        else:
            assert all(torch.equal(a, b) for a, b in zip(again, labels, strict=True))
            noticed += 1
    assert noticed == len(places)


def test_the_command_that_is_advised_makes_what_is_wanted() -> None:
    assert command("world:small", SEGMENTERS["exact-split"], "there").endswith(
        "world:small --segmenter exact-split --out there"
    )
    own = command("nuscenes", Sam("/weights/sam-vit-huge"), "there")
    assert own == "cofield segments nuscenes --root ROOT --segmenter sam --weights /weights/sam-vit-huge --out there"
    assert "--weights" not in command("nuscenes", SEGMENTERS["sam"], "there")
