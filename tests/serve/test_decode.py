"""Images are decoded in a process of their own: the same pixels, and none that takes too long or too much."""

import asyncio
import os
import signal
import time

import pytest
from fuzzing.png import black

from lexlip.serve import decode
from lexlip.serve.decode import Decoders, DecodersBusy
from lexlip_data.errors import BrokenImage
from lexlip_data.sources.images import open_image, square_of

PIXELS = 64 << 20


def run(work, **options):
    """`work(decoders)`, asynchronous; the processes end with it."""

    async def main():
        decoders = Decoders(**options)
        try:
            return await asyncio.wait_for(work(decoders), 60)
        finally:
            await decoders.close()
            assert not decoders._all

    return asyncio.run(main())


def test_one_process_gives_the_same_pixels_and_outlives_bad_images(image):
    async def work(decoders):
        good = await decoders.image(image(1, (50, 70)), 16, PIXELS)
        (process,) = decoders._all
        with pytest.raises(BrokenImage, match="unknown format"):
            await decoders.image(b"nothing", 16, PIXELS)
        with pytest.raises(BrokenImage, match="3,500 pixels|more than 100"):
            await decoders.image(image(1, (50, 70)), 16, 100)
        with pytest.raises(BrokenImage, match="decode"):  # memory for 48 MB of pixels is not there
            await decoders.image(black(4000, 4000), 16, PIXELS)
        assert await decoders.image(image(1, (50, 70)), 16, PIXELS) == good
        assert decoders._all == {process}
        return good

    wanted = square_of(open_image(image(1, (50, 70)), 16), 16)
    assert run(work, memory=40 << 20) == wanted


def test_an_image_that_takes_too_long_is_killed_alone(image):
    """What hangs is stood in for by a stopped process."""

    async def work(decoders):
        await decoders.image(image(), 8, PIXELS)
        (process,) = decoders._all
        process.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(BrokenImage, match="takes more than 0.5 seconds"):
            await decoders.image(image(), 8, PIXELS)
        assert time.monotonic() - start < 5
        decoders._seconds = 30  # a busy machine
        assert (await decoders.image(image(), 8, PIXELS)).size == (8, 8)
        assert process not in decoders._all and await process.wait() == -signal.SIGKILL

    async def started(decoders):
        decoders._seconds = 30
        await decoders.image(image(), 8, PIXELS)
        decoders._seconds = 0.5
        await work(decoders)

    run(started, seconds=0.5)


def test_a_process_that_dies_takes_one_image_with_it(image):
    async def work(decoders):
        await decoders.image(image(), 8, PIXELS)
        (process,) = decoders._all
        process.send_signal(signal.SIGSTOP)
        asking = asyncio.create_task(decoders.image(image(), 8, PIXELS))
        await asyncio.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(BrokenImage, match="it ended the process"):
            await asking
        return await decoders.image(image(), 8, PIXELS)

    assert run(work, seconds=30).size == (8, 8)


def test_who_waits_too_long_is_told_and_who_gives_up_leaves_nothing(image):
    async def work(decoders):
        await decoders.image(image(), 8, PIXELS)
        (process,) = decoders._all
        process.send_signal(signal.SIGSTOP)
        first = asyncio.create_task(decoders.image(image(), 8, PIXELS))
        await asyncio.sleep(0.05)
        with pytest.raises(DecodersBusy):
            await decoders.image(image(), 8, PIXELS)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await process.wait() == -signal.SIGKILL
        return await decoders.image(image(), 8, PIXELS)

    assert run(work, seconds=30, wait=0.1).size == (8, 8)


def test_a_process_that_cannot_start_is_a_mistake_of_the_service(image, monkeypatch):
    monkeypatch.setattr(decode, "_CODE", "import sys; sys.exit(3)")
    with pytest.raises(RuntimeError, match="did not start"):
        run(lambda decoders: decoders.image(image(), 8, PIXELS))


def test_all_of_an_image_comes_back_where_no_square_is_wanted(image):
    """Scaled down by a whole number beyond what any tower looks at."""

    async def work(decoders):
        return await decoders.image(image(1, (50, 70)), 0, PIXELS), await decoders.image(black(3000, 3000), 0, PIXELS)

    whole, large = run(work, seconds=30)
    assert whole.tobytes() == open_image(image(1, (50, 70))).tobytes() and large.size == (1500, 1500)


def test_modules_of_the_current_folder_are_not_run(image, tmp_path, monkeypatch):
    for name in ("json", "signal", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    assert run(lambda decoders: decoders.image(image(), 8, PIXELS), seconds=30).size == (8, 8)
    assert not (tmp_path / "ran").exists()
