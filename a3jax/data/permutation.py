"""Random orders that are computed place by place: no array of a corpus's size, no state, the same on every machine.

A Feistel network permutes the numbers of 2 b bits whatever its round function is, and what falls outside the range is
permuted again until it is inside it. Keys are 64-bit numbers; every key has an order of its own.
"""

import numpy as np

_ROUNDS = 6
_LEAST_BITS = 3
"""Of half a number: fewer would leave few orders to choose from."""


def key(*numbers: int | np.ndarray) -> np.ndarray:
    """A key made of whole numbers, or arrays of them, each of which changes it altogether."""
    result = np.zeros((), np.uint64)
    for number in numbers:
        result = _mix(result ^ _mix(np.asarray(number).astype(np.uint64)))
    return result


def permute(index_N: np.ndarray, size: int, key_N: np.ndarray) -> np.ndarray:
    """Where each index from 0 to `size` - 1 goes in a random order of them, int64. Each may have a key of its own."""
    bits = np.uint64(max(_LEAST_BITS, (int(size - 1).bit_length() + 1) // 2))
    value_N, key_N = index_N.astype(np.uint64), np.broadcast_to(key_N, index_N.shape)
    outside = np.arange(len(value_N))
    while len(outside):
        value_N[outside] = _feistel(value_N[outside], bits, key_N[outside])
        outside = outside[value_N[outside] >= size]
    return value_N.astype(np.int64)


def shuffled(size: int, key: np.ndarray) -> np.ndarray:
    """All indices from 0 to `size` - 1 in a random order, int64; for sizes of which an array is no matter."""
    return np.argsort(_mix(key ^ _mix(np.arange(size).astype(np.uint64))), kind="stable")


def _feistel(value_N: np.ndarray, bits: np.uint64, key_N: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left_N, right_N = value_N >> bits, value_N & mask
    for turn in range(_ROUNDS):
        left_N, right_N = right_N, left_N ^ (_mix(right_N ^ _mix(key_N + np.uint64(turn))) & mask)
    return (left_N << bits) | right_N


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood, 2014): one-to-one, and every bit of the result depends on every bit of `x`."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
