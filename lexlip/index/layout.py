"""Numbers of the packed postings that are needed without numba: to check a segment when it is opened."""

SKIP_EVERY = 256  # postings between two positions at which decoding can start
PADDING = 8  # bytes after the last list, because words of 8 bytes are read
MAX_LOW_BITS = 25  # so that documents below 2^25 and sums of gaps stay far below 2^63 on any bytes

# Columns of the table of lists, int64: where a list begins and ends, its postings, r, highest impact code, first skip.
BEGIN, END, COUNT, LOW, TOP, SKIPS = range(6)
COLUMNS = 6
MAX_QUERY_TERMS = 1 << 14  # rounding of scaled scores then moves a sum by a thousandth at most
