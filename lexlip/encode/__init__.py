"""A corpus of images or texts, of any length, to Arrow shards of lexicon vectors that `lexlip index build` reads.

    from lexlip.encode.run import encode
    from lexlip.encode.tables import read_arrow
    encode(model, read_arrow(["coco_caption_karpathy_val.arrow"]), "vectors", top_k=64)

Memory is that of the model, one batch and one window of vectors, however long the corpus; each reader says what the
corpus itself keeps.
"""
