"""Shards by the name that this module once had."""

from lexlip.index.shards import read_shards, write_shard

__all__ = ["read_shards", "write_shard"]
