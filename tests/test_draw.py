import torch

from cofield.draw import counted_seed, generator


def test_the_same_keys_draw_the_same_and_other_keys_do_not() -> None:
    one = torch.rand(4, generator=generator(7, 0, "frame", "mask"))
    assert torch.equal(one, torch.rand(4, generator=generator(7, 0, "frame", "mask")))
    for other in ((8, 0, "frame", "mask"), (7, 1, "frame", "mask"), (7, 0, "frame", "rays"), (7, 0, "framemask")):
        assert not torch.equal(one, torch.rand(4, generator=generator(*other)))


def test_a_number_and_its_name_are_different_keys() -> None:
    assert counted_seed(1) != counted_seed("1")
    assert counted_seed("a", "b") != counted_seed("ab")


def test_seeds_are_the_same_on_every_machine() -> None:
    assert counted_seed("cofield", 1) == 3303563850102850105
