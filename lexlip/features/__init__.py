"""What frozen towers see, kept on disk: written once by `lexlip cache`, read by whatever trains heads on it.

    from lexlip.features.store import FeatureStore
    train = FeatureStore("FEATURES").split("train")
    train.images([0, 5, 7])                 # (3, L, D) float16
    train.texts([0, 1]).states              # (2, T, D) float16, of the lexicon's word pieces

Costs 2 L D bytes per photo and 2 D bytes per word piece on disk; reading maps the files and keeps the row numbers.
"""
