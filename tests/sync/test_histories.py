"""Random histories of a folder, with syncs that are killed at a random moment, equal a fresh build."""

import os
import random
import shutil

import pytest

from lexlip.sync.run import sync

HISTORIES = int(os.environ.get("LEXLIP_HISTORIES", "40"))
NAMES = [f"{folder}{number}.jpg" for folder in ("", "a/", "a/b/", "c/") for number in range(4)]
CONTENTS = [b"one", b"two", b"three", b"broken 1", b"broken 2"] + [b"%03d" % number for number in range(12)]


def step(folder, chance):
    """One thing that happens to a folder."""
    there = [path for path in sorted(folder.rglob("*.jpg"))]
    what = chance.choice(["write", "write", "write", "rename", "delete", "touch", "swap", "copy", "folder"])
    path = folder / chance.choice(NAMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "write" or not there:
        path.write_bytes(chance.choice(CONTENTS))
        when = chance.randrange(10**18, 17 * 10**17)  # never the same time twice: that, nobody could see
        if chance.random() < 0.7:
            os.utime(path, ns=(when, when))
        return
    one, other = chance.choice(there), chance.choice(there)
    if what == "rename":
        one.replace(path)
    elif what == "delete":
        one.unlink()
    elif what == "touch":
        os.utime(one)
    elif what == "copy" and one != path:
        shutil.copy2(one, path)
    elif what == "swap":
        between = folder / "between"
        one.rename(between)
        if other.exists():
            other.rename(one)
        between.rename(other)
    elif what == "folder" and (folder / "c").exists():
        target = folder / "d"
        shutil.rmtree(target, ignore_errors=True)
        (folder / "c").rename(target)


def killed(folder, index, encoder, batch, moment):
    """A sync in a process of its own that ends, without a word, when it writes to the disk for the n-th time."""
    process = os.fork()
    if process == 0:
        left = [moment]
        write = os.fsync

        def fsync(handle):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            write(handle)

        os.fsync = fsync
        status = 0
        try:
            sync(folder, index, encoder, batch=batch, may_be_empty=True)
        except BaseException:
            status = 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forks")
def test_random_histories_equal_a_fresh_build(tmp_path, make_encoder, held, due):
    ends = []
    for number in range(HISTORIES):
        chance = random.Random(number)
        folder, index = tmp_path / f"photos{number}", tmp_path / f"index{number}"
        folder.mkdir()
        (folder / "0.jpg").write_bytes(b"first")
        for _ in range(chance.randrange(1, 4)):
            for _ in range(chance.randrange(1, 8)):
                step(folder, chance)
            if chance.random() < 0.6:
                end = killed(folder, index, make_encoder(), chance.choice([2, 5, 100]), chance.randrange(1, 16))
                ends.append(end)
                assert end in (0, 9) or not any(due(folder))
            elif any(folder.rglob("*.jpg")):
                sync(folder, index, make_encoder(), batch=chance.choice([2, 5, 100]))
                assert held(index) == due(folder), number
        (folder / "last.jpg").write_bytes(b"last")
        sync(folder, index, make_encoder())
        assert held(index) == due(folder), number
        if number % 10 == 0:
            sync(folder, tmp_path / "fresh", make_encoder())
            assert held(index) == held(tmp_path / "fresh")
            shutil.rmtree(tmp_path / "fresh")
        shutil.rmtree(folder)
        shutil.rmtree(index)
    assert ends.count(9) > len(ends) / 4
