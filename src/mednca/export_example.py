"""Segments one slice of a scan with the ONNX files in this folder; needs NumPy and ONNX Runtime only.

    python example.py SCAN.npy NUMBER MASK.npy

SCAN.npy holds slices (slices, channels, rows, columns) as README.md tells; NUMBER, from 0, picks one of them;
MASK.npy becomes its mask, uint8 (rows, columns).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Array = Any  # a NumPy array
Told = dict[str, str]  # what a file says of itself
Levels = list[tuple[Any, Told]]  # coarse to fine: the session, and what its file says


def absorb(word: Array, value: Array) -> Array:
    """Words and values of 32 bits -> words: one round of the hash that decides which cells update."""
    word = (word + value + 0x9E3779B9) & 0xFFFFFFFF
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return word ^ (word >> 16)


def fire_mask(key: tuple[int, ...], height: int, width: int, rate: float) -> Array:
    """Seed, level, step and slice -> bool (1, height, width): the same cells as in every engine of mednca."""
    word = 0
    for value in key:
        word = absorb(word, value)
    rows = absorb(word, np.arange(height, dtype=np.uint64)[:, None])
    return (absorb(rows, np.arange(width, dtype=np.uint64)) >> 8 < round(rate * (1 << 24)))[None]


def downscale(image: Array, scale: int) -> Array:
    """Image (..., rows, columns) -> smaller by the scale: means of the pixels next to each block's centre."""
    near, far = (scale - 1) // 2, scale // 2
    image = (image[..., near::scale, :] + image[..., far::scale, :]) / 2
    return (image[..., near::scale] + image[..., far::scale]) / 2


def rescale(image: Array) -> Array:
    """Intensities -> clipped to their 0.5 and 99.5 percentile and scaled to [0, 1]."""
    low, high = np.percentile(image, (0.5, 99.5))
    low, high = (low, high) if high > low else (image.min(), image.max())
    return (np.clip(image, low, high) - low) / (high - low) if high > low else np.zeros_like(image)


def shaded_as_usual(channel: Array, usual: Array) -> Array:
    """Channel of a scan, and the limit and the coefficients of what is usual -> the same, its shading brought
    back to the usual one where it is farther from it than the limit. The shading is the cubic polynomial of
    the place that is nearest to the logarithm of the positive voxels, on a grid of up to 24 along each axis
    of their box. The least value is no part of it where many voxels have it."""
    least, limit = channel.min(), usual[0]
    fill = least if (channel == least).sum() > max(0.01 * channel.size, 8) else 0
    left = np.where(channel > max(fill, 0), channel, 0).astype(float)
    there = np.argwhere(left > 0) if left.any() else np.array([[0, 0, 0], left.shape]) - [[0], [1]]
    box = tuple(slice(low, high + 1) for low, high in zip(there.min(axis=0), there.max(axis=0), strict=True))
    axes = [(2 * np.arange(n) - (n - 1.0)) / max(n - 1, 1) for n in left[box].shape]
    grid = tuple(slice(-(-n // 24) // 2, None, -(-n // 24)) for n in left[box].shape)
    seen = left[box][grid]
    terms = [at for at in np.ndindex(*(min(4, n) for n in seen.shape)) if sum(at) < 4]
    inside = seen > 0
    if inside.sum() < 4 * len(terms):
        return (channel if limit else left).astype(np.float32)
    places = np.meshgrid(*(axis[part] for axis, part in zip(axes, grid, strict=True)), indexing="ij")
    x, y, z = (place[inside] for place in places)
    design = np.stack([x**i * y**j * z**k for i, j, k in terms], axis=1)
    logs, fit, weights = np.log(seen[inside]), np.zeros((4, 4, 4)), np.ones(inside.sum())
    for _ in range(4):  # what lies far from the fit, as air does, counts less in the next
        normal = design.T @ (design * weights[:, None])
        normal += 1e-9 * np.trace(normal) / len(terms) * np.eye(len(terms))
        found = np.linalg.solve(normal, design.T @ (weights * logs))
        weights = 1 / (1 + ((logs - design @ found) / 0.5) ** 2)
    fit[tuple(np.transpose(terms))] = found
    every = np.array([at for at in np.ndindex(4, 4, 4) if 0 < sum(at) < 4])
    change = np.array(usual[1:]) - fit[tuple(every.T)]
    both = [[np.prod([(n + 1) % 2 / (n + 1) for n in a + b]) for b in every] for a in every]
    mean = np.array([np.prod([(n + 1) % 2 / (n + 1) for n in a]) for a in every])
    far = np.sqrt(max(0, change @ (both - np.outer(mean, mean)) @ change))  # deviation over the box
    if limit and far <= limit:
        return channel.astype(np.float32)
    by = np.zeros((4, 4, 4))
    by[tuple(every.T)] = change * (min(1, (far / limit - 1) / 0.25) if limit else 1)
    by[0, 0, 0] = -fit[0, 0, 0]
    field = np.polynomial.polynomial.polygrid3d(axes[0], axes[1], axes[2], by)
    left[box] *= np.exp(np.clip(field, -500, 500))
    return np.minimum(left, np.finfo(np.float32).max).astype(np.float32)


def padded(length: int, scale: int, margin: int) -> tuple[Array, slice]:
    """Length of an axis -> which pixel each of a multiple of the scale repeats, and where the axis lies."""
    size = max(2 * scale, -(-(length + 2 * margin) // scale) * scale)
    start = (size - length) // 2
    return np.clip(np.arange(size) - start, 0, length - 1), slice(start, start + length)


def run(levels: Levels, image: Array, number: int, seed: int) -> Array:
    """Image (channels, rows, columns) -> probabilities (classes, rows, columns), levels coarse to fine."""
    classes, channels = int(levels[0][1]["classes"]), int(levels[0][1]["channels"])
    state = np.zeros((1, channels, 1, 1), np.float32)
    for level, (session, told) in enumerate(levels):
        sharp = downscale(image, int(told["scale"]))
        height, width = sharp.shape[1:]
        state = state.repeat(height // state.shape[2], axis=2).repeat(width // state.shape[3], axis=3)
        state[0, : len(image)] = sharp
        for step in range(int(told["steps"])):
            fires = fire_mask((seed, level, step, number), height, width, float(told["fire_rate"]))
            (state,) = session.run(["next"], {"state": state, "fires": fires})
    logits = np.pad(state[0, len(image) : len(image) + classes], ((1, 0), (0, 0), (0, 0)))  # background: 0
    shares = np.exp(logits - logits.max(axis=0))
    return shares[1:] / shares.sum(axis=0)


def mirrors(told: Told, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A run by its number -> whether it sees neighbours in reverse order: (0,) if so, and which of the last
    two dimensions it sees mirrored."""
    cut, *_ = map(int, told["axes"].split())
    axes = [int(axis) for bit, axis in enumerate(told.get("mirror", "").split()) if number >> bit & 1]
    plane = [axis for axis in range(3) if axis != cut]
    return (0,) * (cut in axes), tuple(place - 2 for place in (0, 1) if plane[place] in axes)


def average(levels: Levels, scan: Array, number: int) -> Array:
    """Normalised scan (S, M, H, W) and the number of a slice -> its probabilities (K, H, W), averaged over
    the runs."""
    told = levels[0][1]
    reach = int(told["context"])  # neighbours on each side come along as further channels
    image = scan[np.clip(np.arange(number - reach, number + reach + 1), 0, len(scan) - 1)]
    if told["normalise"] == "slice":
        image = np.stack([[rescale(channel) for channel in channels] for channels in image])
    scale, margin = int(told["scale"]), int(told.get("margin", 0))
    (rows, top), (columns, left) = (padded(length, scale, margin) for length in image.shape[2:])
    runs, shares = int(told["ensemble"]), np.zeros((1, 1, 1), np.float32)
    for seed in range(runs):
        order, plane = mirrors(told, seed)
        seen = np.flip(image, order + plane).reshape(-1, *scan.shape[2:]).astype(np.float32)
        named = len(scan) - 1 - number if order else number
        found = run(levels, seen[:, rows][:, :, columns], named, seed)[:, top, left]
        shares = shares + np.flip(found, plane) / runs
    return shares


def main() -> None:
    """Do what the first line says."""
    files = sorted(Path(__file__).parent.glob("level_*.onnx"))
    sessions = [onnxruntime.InferenceSession(str(file)) for file in files]
    levels = [(session, session.get_modelmeta().custom_metadata_map) for session in sessions]
    told = levels[0][1]
    scan, number = np.load(sys.argv[1]).astype(np.float32), int(sys.argv[2])
    if "field" in told:
        usual = np.array(told["field"].split(), float).reshape(scan.shape[1], -1)
        channels = zip(scan.swapaxes(0, 1), usual, strict=True)
        scan = np.stack([shaded_as_usual(channel, seen) for channel, seen in channels], axis=1)
    if told["normalise"] == "volume":
        scan = np.stack([rescale(channel) for channel in scan.swapaxes(0, 1)], axis=1)
    times = int(told.get("smoothing", 0))  # so many neighbours on each side weigh in
    first, last = max(0, number - times), min(len(scan) - 1, number + times)
    slices = np.stack([average(levels, scan, at) for at in range(first, last + 1)])
    for _ in range(times):
        edged = np.concatenate([slices[:1], slices, slices[-1:]])
        slices = 0.25 * (edged[:-2] + edged[2:]) + 0.5 * slices
    shares = slices[number - first]
    values = np.array(told["values"].split(), np.uint8)[shares.argmax(axis=0)]
    mask = np.where(shares.sum(axis=0) > float(told["threshold"]), values, 0).astype(np.uint8)
    np.save(sys.argv[3], mask)


if __name__ == "__main__":
    main()
