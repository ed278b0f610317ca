import torch

from lexlip.utils.devices import PIXELS, in_parts


def test_a_cpu_gets_few_images_at_a_time_and_all_of_them():
    seen = []

    def encode(pixels):
        seen.append(len(pixels))
        return pixels.flatten(1).sum(1)

    side = 256
    for count, parts in ((9, [4, 4, 1]), (4, [4]), (0, [0])):
        pixels, seen[:] = torch.arange(count * 3.0).view(count, 3, 1, 1).expand(-1, -1, side, side), []
        assert torch.equal(in_parts(encode, pixels, torch.device("cpu")), pixels.flatten(1).sum(1))
        assert seen == parts
    assert PIXELS // side**2 == 4


def test_an_image_larger_than_that_goes_alone_and_other_devices_take_all():
    seen = []
    encode = lambda pixels: seen.append(len(pixels)) or pixels.flatten(1)[:, :1]
    in_parts(encode, torch.zeros(2, 3, 600, 600), torch.device("cpu"))
    in_parts(encode, torch.zeros(50, 3, 16, 16), torch.device("meta"))  # pixels that a tower moves itself
    assert seen == [1, 1, 50]
