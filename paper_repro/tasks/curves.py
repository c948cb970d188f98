"""The pictures of Pathfinder: dashed curves that keep apart, and discs on two of their ends.

A curve is a chain of dashes. From one to the next its direction turns by an angle with density proportional to ``cos(c a)^2``, ``|a| < pi / (2 c)``, where `c` is
the continuity; half of the gap lies along the old direction and half along the new one. All curves keep `clearance` from one another and from
themselves, and it is larger than the gap: that is what makes dashes of one curve belong together.

Lengths are in pixels of a picture of 32 x 32, and scale with its side. Source of the design: J. Kim, D. Linsley, K. Thakkar and T. Serre, "Disentangling neural mechanisms
for perceptual grouping", ICLR 2020; of the sizes at 32 x 32: Y. Tay et al., "Long Range Arena", ICLR 2021. Drawing is our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np

REFERENCE_SIDE = 32
DASH, GAP = 1.8, 1.2
CLEARANCE = 2.7  # between centre lines: 1.7 between the edges of dashes, which are 1 wide
BORDER = 1.5
DISC = 1.5  # radius
SEED_DISTANCE = 7.0  # between the beginnings of the two long curves
SAME_DISTANCE = 0.5  # by how much the distance of two discs may depend on whether they lie on one curve
GREY = 0.75  # of a dash; discs are white
TRIES_OF_A_DASH, TRIES_OF_A_DISTRACTOR = 12, 5
RETREATS, RETREAT = 6, 4  # how often a long curve in a dead end goes back, and by how many dashes
SECOND_CURVES = 30  # tries of a second curve beside the first
TRIES_OF_A_PICTURE = 20_000
SAMPLES = 4  # points of a dash that clearance is measured from: the bend before it, both its ends and its middle


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes
    ----------
    dashes : ndarray
        ``(n, 4)``: beginning and end of each dash, x and y, in units of the picture's side.
    curve : ndarray
        ``(n,)``: the curve of each dash; 0 and 1 are the long ones.
    discs : ndarray
        ``(2, 2)``: the two discs.
    label : int
        1 if both discs lie on the same curve.
    """

    dashes: np.ndarray
    curve: np.ndarray
    discs: np.ndarray
    label: int


@numba.njit(cache=True)
def _turn(random, continuity):  # type: ignore[no-untyped-def]
    """Draw an angle with density cos(continuity a)^2."""
    while True:
        angle = (2 * random.random() - 1) * math.pi / (2 * continuity)
        if random.random() < math.cos(continuity * angle) ** 2:
            return angle


@numba.njit(cache=True)
def _is_free(samples, curve, place, taken, owners, n_taken, tips, n_tips):  # type: ignore[no-untyped-def]
    """Say whether the points of a new dash keep clear of the border, of all dashes but the one before it, and of `tips`."""
    for k in range(SAMPLES):
        x, y = samples[k, 0], samples[k, 1]
        if not (BORDER <= x <= REFERENCE_SIDE - BORDER and BORDER <= y <= REFERENCE_SIDE - BORDER):
            return False
    for k in range(SAMPLES):
        x, y = samples[k, 0], samples[k, 1]
        for i in range(n_taken):
            near = (x - taken[i, 0]) ** 2 + (y - taken[i, 1]) ** 2 < CLEARANCE**2
            if near and (owners[i, 0] != curve or owners[i, 1] < place - 1):
                return False
        for i in range(n_tips):
            if (x - tips[i, 0]) ** 2 + (y - tips[i, 1]) ** 2 < (DISC + 0.5 * CLEARANCE) ** 2:
                return False
    return True


@numba.njit(cache=True)
def _put(samples, curve, place, taken, owners, n_taken):  # type: ignore[no-untyped-def]
    for k in range(SAMPLES):
        taken[n_taken + k, 0], taken[n_taken + k, 1] = samples[k, 0], samples[k, 1]
        owners[n_taken + k, 0], owners[n_taken + k, 1] = curve, place
    return n_taken + SAMPLES


@numba.njit(cache=True)
def _step(random, state, continuity, curve, place, taken, owners, n_taken, tips, n_tips, samples):  # type: ignore[no-untyped-def]
    """Put the next dash of a curve whose end and direction are `state`; return the number of points, or -1 where none fits."""
    for _ in range(TRIES_OF_A_DASH):
        angle = state[2] + (_turn(random, continuity) if place else 0.0)
        half_gap = 0.5 * GAP if place else 0.0
        x = state[0] + half_gap * math.cos(state[2])
        y = state[1] + half_gap * math.sin(state[2])
        for k in range(SAMPLES):
            along = 0.0 if k == 0 else half_gap + 0.5 * DASH * (k - 1)
            samples[k, 0], samples[k, 1] = x + along * math.cos(angle), y + along * math.sin(angle)
        if _is_free(samples, curve, place, taken, owners, n_taken, tips, n_tips):
            state[0], state[1], state[2] = samples[SAMPLES - 1, 0], samples[SAMPLES - 1, 1], angle
            return _put(samples, curve, place, taken, owners, n_taken)
    return -1


@numba.njit(cache=True)
def _choose_pairs(random, tips, pairs):  # type: ignore[no-untyped-def]
    """Choose two ends of one curve and, equally far apart, one of these and an end of the other curve; return whether there are such.

    Both pairs have the beginning of a curve and the end of one. Without this choice nearly straight curves, whose ends are always as far apart, would give most labels away by
    the distance of the discs alone.
    """
    n_found = 0
    for curve in range(2):
        begin, end = 2 * curve, 2 * curve + 1
        for kind in range(2):
            other_begin, other_end = (begin, 3 - begin) if kind == 0 else (2 - begin, end)
            same = math.hypot(tips[begin, 0] - tips[end, 0], tips[begin, 1] - tips[end, 1])
            across = math.hypot(tips[other_begin, 0] - tips[other_end, 0], tips[other_begin, 1] - tips[other_end, 1])
            if abs(same - across) <= SAME_DISTANCE:
                n_found += 1
                if random.random() * n_found < 1:  # each of those found with equal probability
                    pairs[0, 0], pairs[0, 1], pairs[1, 0], pairs[1, 1] = other_begin, other_end, begin, end
    return n_found > 0


@numba.njit(cache=True)
def _curve(random, state, contour, continuity, curve, taken, owners, n_taken, tips, n_tips, retreats):  # type: ignore[no-untyped-def]
    """Put a whole curve that begins at `state`, which becomes its end; return the number of points, or -1 where it finds no room.

    In a dead end it goes back by some dashes, at most `retreats` times.
    """
    samples = np.empty((SAMPLES, 2))
    history = np.empty((contour + 1, 3))  # the state before each dash
    history[0] = state
    place, first = 0, n_taken
    while place < contour:
        history[place + 1] = history[place]
        n_taken = _step(
            random,
            history[place + 1],
            continuity,
            curve,
            place,
            taken,
            owners,
            first + SAMPLES * place,
            tips,
            n_tips,
            samples,
        )
        if n_taken >= 0:
            place += 1
        elif retreats == 0:
            return -1
        else:
            retreats -= 1
            place = max(0, place - RETREAT)
    state[:] = history[contour]
    return n_taken


@numba.njit(cache=True)
def _anywhere(random, state):  # type: ignore[no-untyped-def]
    """Draw a place inside the border, and a direction."""
    inner = REFERENCE_SIDE - 2 * BORDER
    state[0], state[1] = BORDER + inner * random.random(), BORDER + inner * random.random()
    state[2] = 2 * math.pi * random.random()


@numba.njit(cache=True)
def _long_curves(random, contour, continuity, taken, owners, tips, pairs):  # type: ignore[no-untyped-def]
    """Put the two long curves; return the number of points, or -1 if they find no room, or no places for discs.

    `tips` gets beginning and end of the first and of the second curve, `pairs` the ends that get discs: row 0 of two curves, row 1 of the same.
    """
    state = np.empty(3)
    _anywhere(random, state)
    tips[0] = state[:2]
    first = _curve(random, state, contour, continuity, 0, taken, owners, 0, tips, 0, RETREATS)
    if first < 0:
        return -1
    tips[1] = state[:2]
    for _ in range(SECOND_CURVES):
        away = 2 * math.pi * random.random()
        state[0], state[1] = tips[0, 0] + SEED_DISTANCE * math.cos(away), tips[0, 1] + SEED_DISTANCE * math.sin(away)
        state[2] = 2 * math.pi * random.random()
        tips[2] = state[:2]
        n_taken = _curve(random, state, contour, continuity, 1, taken, owners, first, tips, 0, RETREATS)
        if n_taken >= 0:
            tips[3] = state[:2]
            if _choose_pairs(random, tips, pairs):
                return n_taken
    return -1


@numba.njit(cache=True)
def _grow(random, contour, distractor, n_distractors, continuity, taken, owners, tips, pairs):  # type: ignore[no-untyped-def]
    """Put all curves; return the number of points, or -1 as `_long_curves` does."""
    state = np.empty(3)
    n_taken = _long_curves(random, contour, continuity, taken, owners, tips, pairs)
    if n_taken < 0:
        return -1
    for number in range(n_distractors):
        for _ in range(TRIES_OF_A_DISTRACTOR):
            _anywhere(random, state)
            end = _curve(random, state, distractor, continuity, 2 + number, taken, owners, n_taken, tips, 4, 0)
            if end >= 0:
                n_taken = end
                break
    return n_taken


@numba.njit(cache=True)
def _draw(dashes, discs, thickness, picture):  # type: ignore[no-untyped-def]
    """Draw into `picture`, whose side sets the scale; edges are one pixel wide ramps."""
    side = picture.shape[0]
    for i in range(dashes.shape[0]):
        x0, y0, x1, y1 = dashes[i, 0] * side, dashes[i, 1] * side, dashes[i, 2] * side, dashes[i, 3] * side
        length = math.hypot(x1 - x0, y1 - y0)
        cosine, sine = (x1 - x0) / length, (y1 - y0) / length
        half_width = 0.5 * thickness * side / REFERENCE_SIDE
        reach = 0.5 * length + half_width + 1
        cx, cy = 0.5 * (x0 + x1), 0.5 * (y0 + y1)
        for row in range(max(0, int(cy - reach)), min(side, int(cy + reach) + 1)):
            for column in range(max(0, int(cx - reach)), min(side, int(cx + reach) + 1)):
                dx, dy = column + 0.5 - cx, row + 0.5 - cy
                along = min(1.0, max(0.0, 0.5 * length + 0.5 - abs(dx * cosine + dy * sine)))
                across = min(1.0, max(0.0, half_width + 0.5 - abs(dy * cosine - dx * sine)))
                picture[row, column] = max(picture[row, column], GREY * along * across)
    radius = DISC * side / REFERENCE_SIDE
    for i in range(discs.shape[0]):
        cx, cy = discs[i, 0] * side, discs[i, 1] * side
        for row in range(max(0, int(cy - radius - 1)), min(side, int(cy + radius + 1) + 1)):
            for column in range(max(0, int(cx - radius - 1)), min(side, int(cx + radius + 1) + 1)):
                distance = math.hypot(column + 0.5 - cx, row + 0.5 - cy)
                picture[row, column] = max(picture[row, column], min(1.0, max(0.0, radius + 0.5 - distance)))


@numba.njit(cache=True)
def _scene(random, contour, distractor, n_distractors, continuity, taken, owners, tips, dashes, discs):  # type: ignore[no-untyped-def]
    """Draw a scene at random; return its number of dashes (-1: no room) and its label."""
    n_taken, pairs = -1, np.empty((2, 2), np.int64)
    for _ in range(TRIES_OF_A_PICTURE):
        n_taken = _grow(random, contour, distractor, n_distractors, continuity, taken, owners, tips, pairs)
        if n_taken >= 0:
            break
    if n_taken < 0:
        return -1, 0
    n_dashes = n_taken // SAMPLES
    for i in range(n_dashes):
        for axis in range(2):
            dashes[i, axis] = taken[SAMPLES * i + 1, axis] / REFERENCE_SIDE
            dashes[i, 2 + axis] = taken[SAMPLES * i + SAMPLES - 1, axis] / REFERENCE_SIDE
    label = 1 if random.random() < 0.5 else 0
    for disc in range(2):
        for axis in range(2):
            discs[disc, axis] = tips[pairs[label, disc], axis] / REFERENCE_SIDE
    return n_dashes, label


@numba.njit(cache=True)
def _pictures(random, contour, distractor, n_distractors, continuity, thickness, pictures, labels):  # type: ignore[no-untyped-def]
    """Fill `pictures` ``(count, side, side)``, bytes, and `labels`; return how many were made."""
    most = SAMPLES * (2 * contour + n_distractors * distractor)
    taken, owners, tips = np.empty((most, 2)), np.empty((most, 2), np.int64), np.empty((4, 2))
    dashes, discs = np.empty((most // SAMPLES, 4)), np.empty((2, 2))
    picture = np.empty(pictures.shape[1:])
    for number in range(len(pictures)):
        n_dashes, label = _scene(
            random, contour, distractor, n_distractors, continuity, taken, owners, tips, dashes, discs
        )
        if n_dashes < 0:
            return number
        picture[:] = 0
        _draw(dashes[:n_dashes], discs, thickness, picture)
        for row in range(picture.shape[0]):
            for column in range(picture.shape[1]):
                pictures[number, row, column] = int(255 * picture[row, column] + 0.5)
        labels[number] = label
    return len(pictures)


def n_distractors(distractor: int) -> int:
    """Return how many curves of `distractor` dashes are put beside the two long ones, where there is room."""
    return 20 // distractor


def make_pictures(
    random: np.random.Generator, count: int, *, contour: int, side: int, continuity: float, thickness: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return `count` pictures ``(count, side, side)``, bytes, their labels, and how many of them could be made.

    Parameters
    ----------
    random : numpy.random.Generator
    count : int
    contour : int
        Dashes of each of the two long curves; the others have a third.
    side : int
        Pixels of a row.
    continuity : float
        At least 1; the larger, the straighter the curves.
    thickness : float
        Of a dash, in pixels of a picture of 32 x 32.
    """
    pictures, labels = np.zeros((count, side, side), np.uint8), np.zeros(count, np.uint8)
    distractor = max(1, contour // 3)
    made = _pictures(
        random, contour, distractor, n_distractors(distractor), float(continuity), float(thickness), pictures, labels
    )
    return pictures, labels, made


def make_scene(random: np.random.Generator, *, contour: int, continuity: float) -> Scene | None:
    """Return one scene, None if the curves found no room. `make_pictures` draws what this returns, one after the other."""
    distractor = max(1, contour // 3)
    most = 2 * contour + n_distractors(distractor) * distractor
    taken, owners = np.empty((SAMPLES * most, 2)), np.empty((SAMPLES * most, 2), np.int64)
    dashes, discs = np.empty((most, 4)), np.empty((2, 2))
    n_dashes, label = _scene(
        random, contour, distractor, n_distractors(distractor), float(continuity), taken, owners, np.empty((4, 2)), dashes, discs
    )  # fmt: skip
    if n_dashes < 0:
        return None
    return Scene(dashes[:n_dashes], owners[: SAMPLES * n_dashes : SAMPLES, 0], discs, label)


def draw(scene: Scene, side: int, thickness: float, *, with_discs: bool = True) -> np.ndarray:
    """Return the picture of `scene`, ``(side, side)``, from 0 to 1."""
    picture = np.zeros((side, side))
    _draw(scene.dashes, scene.discs if with_discs else scene.discs[:0], float(thickness), picture)
    return picture
