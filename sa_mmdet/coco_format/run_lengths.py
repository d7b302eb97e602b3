"""Compressed run-length codes of masks, checked many at once before pycocotools reads them without any check."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MORE, _SIGN, _DIGIT = 32, 16, 31  # in a character's six bits
_LONGEST = 7  # characters of one count
_MOST = 2**28  # characters that are checked at once: sums of as many counts fit into 64 bits


def pixels(code: str) -> int | None:
    """The sum of a compressed code's counts, or None if the code is invalid.

    Each character holds six bits, counted from '0': five bits of a count, the lowest first, and one that says whether
    more follow. From the fourth count on, what is stored is the difference to the count before last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift == 5 * _LONGEST:
            return None
        value |= (bits & _DIGIT) << shift
        shift += 5
        if bits & _MORE:
            continue
        if bits & _SIGN:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            return None
        counts.append(value)
        value = shift = 0
    return None if shift else sum(counts)


def describe_images(codes: Sequence[str], sizes: NDArray[np.int64]) -> bool:
    """Whether each of many codes is valid and describes as many pixels as its image has, as :func:`pixels` would say.

    Too many characters count as invalid.

    Args:
        codes: The codes.
        sizes: For each code the number of pixels.
    """
    text = "".join(codes)
    if not all(codes) or not text.isascii() or len(text) > _MOST:
        return False
    bits = np.frombuffer(text.encode(), np.uint8) - np.uint8(48)  # what is below '0' becomes larger than 63
    more = bits & _MORE
    lasts = np.cumsum(np.fromiter(map(len, codes), np.intp, len(codes))) - 1
    if not codes or bits.max() > 63 or more[lasts].any():
        return not codes
    counts, firsts = _stored(bits, more, lasts)
    return counts is not None and _are_sums(counts, firsts, sizes)


def _stored(
    bits: NDArray[np.uint8], more: NDArray[np.uint8], lasts: NDArray[np.intp]
) -> tuple[NDArray[np.int64] | None, NDArray[np.intp]]:
    """What is stored for each count, and where each code begins there; None if one has too many characters."""
    is_end = more == 0
    ends = np.flatnonzero(is_end)
    # Most counts have a single character: its five bits with their sign.
    stored = (((bits & _DIGIT) ^ _SIGN).view(np.int8)[is_end] - np.int8(_SIGN)).astype(np.int64)
    lengths = np.diff(ends, prepend=-1)
    firsts = np.concatenate([[0], np.searchsorted(ends, lasts[:-1]) + 1])
    longer = np.flatnonzero(lengths > 1)
    if not len(longer):
        return stored, firsts
    lengths = lengths[longer]
    if lengths.max() > _LONGEST:
        return None, firsts
    starts = ends[longer] - lengths + 1
    values = stored[longer] << (5 * (lengths - 1))
    for place in range(int(lengths.max()) - 1):
        own = np.flatnonzero(lengths > place + 1)
        values[own] |= (bits[starts[own] + place] & _DIGIT).astype(np.int64) << (5 * place)
    stored[longer] = values
    return stored, firsts


def _are_sums(stored: NDArray[np.int64], firsts: NDArray[np.intp], sizes: NDArray[np.int64]) -> bool:
    """Whether the counts of each code, which begins at ``firsts``, are not negative and have the given sum."""
    ends = np.append(firsts[1:], len(stored))
    first = stored[firsts]
    found = first.copy()
    if (first < 0).any():
        return False
    stored[firsts] = 0
    # Every second count is a sum of what is stored from the code's beginning on. Sums over all codes, one for the even
    # and one for the odd positions, hold it once the sum up to that beginning is subtracted.
    for parity in (0, 1):
        sums = np.cumsum(stored[parity::2])
        begins, stops = ((where + 1 - parity) // 2 for where in (firsts, ends))
        own = np.flatnonzero(begins < stops)
        if not len(own):
            continue
        begins, stops = begins[own], stops[own]
        before = np.append(0, sums)[begins]
        lowest, highest = (limit.reduceat(sums, begins) - before for limit in (np.minimum, np.maximum))
        if (lowest < 0).any() or (highest > sizes[own]).any():
            return False
        found[own] += np.add.reduceat(sums, begins) - (stops - begins) * before
    return bool(np.array_equal(found, sizes))
