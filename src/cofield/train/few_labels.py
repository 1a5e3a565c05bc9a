"""What a run says about scans without labels: how they teach, and how camera pixels come by pseudo-labels."""

from dataclasses import dataclass
from typing import Literal

from cofield.train.least import at_least

PIXELS = "pixels"  # in place of a segmenter: every pixel is a segment of its own


@dataclass(frozen=True)
class Semi:
    """How unlabelled scans teach. `data.batch` counts the labelled ones of a step.

    Args:
        method: `supervised` asks nothing of cameras; `nerf` renders the field into them; `projection` drops points
            onto them, and `projection-consistent` drops labels on which cameras differ.
        unlabelled: such scans in a step.
        weight: of pseudo-labels.
        ramp: the shares of all steps at which what unlabelled scans teach begins to count, and counts in full.
        beams: rendered of each scan by `nerf`.
        rendered: the weight of their class and their range, where scans are labelled.
        placed: the weight of the classes that the field has at labelled points themselves: a beam's samples are few,
            a point is where it is.
        ranges: the weight of their range by `nerf` where scans are not labelled, from the first step on.
        together: with `nerf` and segments, let points vote beside rays, and teach points beside pixels: rendering and
            projection at once.
        carves: let pseudo-labels move what is where, and not only say what it is.
        mixing: the weight of scans mixed as LaserMix does, each labelled one with one other, which has the labels of
            a teacher; 0 does without both.
        momentum: of the teacher's weights, which follow the network's.
        sure: how likely a class must be for the teacher to name it.
    """

    method: Literal["supervised", "nerf", "projection", "projection-consistent"] = "nerf"
    unlabelled: int = 2
    weight: float = 0.5
    ramp: tuple[float, float] = (0.0, 0.2)
    beams: int = 256
    rendered: float = 0.5
    placed: float = 1.0
    ranges: float = 0.0
    together: bool = False
    carves: bool = False
    mixing: float = 0.0
    momentum: float = 0.99
    sure: float = 0.9

    def __post_init__(self) -> None:
        if self.unlabelled < 1:
            raise ValueError(f"at least one scan of a step is unlabelled, got {self.unlabelled}; or method supervised")
        if not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"a ramp is two ascending shares of the steps, 0 to 1, got {self.ramp}")
        for name in ("weight", "rendered", "placed", "ranges", "mixing"):
            if getattr(self, name) < 0:
                raise ValueError(f"semi.{name} is a weight, 0 or more, got {getattr(self, name)}")
        for name in ("momentum", "sure"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"semi.{name} is 0 to 1, got {getattr(self, name)}")
        if self.beams < 1:
            raise ValueError(f"at least one beam of a scan is rendered, got {self.beams}; method projection needs none")

    @property
    def looks(self) -> bool:
        """Whether the sensors of unlabelled scans teach anything by themselves."""
        return (self.method != "supervised" and bool(self.weight)) or self.measures

    @property
    def measures(self) -> bool:
        """Whether the ranges of unlabelled scans teach."""
        return self.method == "nerf" and bool(self.ranges)


@dataclass(frozen=True)
class Pseudo:
    """How camera pixels come by their pseudo-labels.

    Args:
        segmenter: as `cofield segments` knows them; `pixels` lets every pixel stand for itself.
        segments: the folder that `cofield segments` wrote; None makes those that are missing when they are needed.
        weights: of sam: a local folder, or a name that its loader knows.
        threshold: the entropy below which a ray votes and a segment is kept; None keeps all.
        voters: rays that must vote in a segment.
        smallest: pixels of a segment.
        count: segments of an image in a step.
        rays: of a segment.
        samples: along each ray, also of beams.
        cameras: random ones of each scan in a step; None is all. This, `count` and `rays` save time where rays are
            rendered; points that vote are those of all cameras and segments, which costs nothing.
        everywhere: look also where no points are nearby, which nothing but pseudo-labels ever teaches.
        caution: against the loss of rare classes: 1 keeps only what would be kept if classes were equally frequent.
        balance: the bolder answer: every vote is cast as if they were.
    """

    segmenter: str = "felzenszwalb"
    segments: str | None = None
    weights: str | None = None
    threshold: float | None = 0.3
    voters: int = 5
    smallest: int = 16
    count: int = 32
    rays: int = 32
    samples: int = 64
    cameras: int | None = None
    everywhere: bool = False
    caution: float = 0.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        at_least("pseudo", self, count=1, rays=1, samples=2, cameras=1, voters=1, smallest=1)
