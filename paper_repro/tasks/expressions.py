"""The expressions of ListOps: grown from the published grammar, written as tokens, and evaluated.

An expression is a digit, or an operator with 2 to `max_arguments` expressions and a closing bracket: MIN, MAX, MED (the median, rounded down) or SM (the sum modulo 10).
A node above the largest depth becomes an operator with probability .25, else a digit. (The published generator calls that number `VALUE_P`, but compares so that
it is the probability of an operator; with .75 for operators the expressions would have hundreds of thousands of tokens.)

Source: N. Nangia and S. Bowman, "ListOps: A diagnostic dataset for latent tree learning", 2018; sizes: Y. Tay et al., "Long Range Arena", ICLR 2021.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

# Tokens: 0 is padding, then the ten digits, the four operators with their opening bracket, and the closing bracket.
FIRST_DIGIT, MIN, MAX, MED, SM, END = 1, 11, 12, 13, 14, 15
VOCABULARY = 16
WORDS = (*"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")  # of tokens 1, 2, ...
P_OPERATOR = 0.25
TRIES = 1_000_000  # trees for one expression of the right length
NOT_AN_EXPRESSION = -1


@numba.njit(cache=True)
def _apply(operator, arguments, count):  # type: ignore[no-untyped-def]
    """Return the value of an operator whose arguments are the first `count` entries, which are sorted in place."""
    chosen = np.sort(arguments[:count])
    if operator == MIN:
        return chosen[0]
    if operator == MAX:
        return chosen[-1]
    if operator == MED:
        return (chosen[(count - 1) // 2] + chosen[count // 2]) // 2
    return chosen.sum() % 10


@numba.njit(cache=True)
def _grow(random, max_depth, max_arguments, max_length, tokens, operators, wanted, found, values):  # type: ignore[no-untyped-def]
    """Write one expression to `tokens`; return its length, -1 if that exceeds `max_length`, and its value.

    The other arrays are room for what is open at each depth: operator, number of arguments that it is to have and has, and their values.
    """
    length, depth = 0, 0  # depth: operators that are open
    while True:
        if length + depth >= max_length:
            return -1, 0
        if depth + 1 < max_depth and random.random() < P_OPERATOR:
            operators[depth] = MIN + random.integers(0, 4)
            wanted[depth], found[depth] = random.integers(2, max_arguments + 1), 0
            tokens[length] = operators[depth]
            length, depth = length + 1, depth + 1
            continue
        value = random.integers(0, 10)
        tokens[length] = FIRST_DIGIT + value
        length += 1
        while depth > 0:
            values[depth - 1, found[depth - 1]] = value
            found[depth - 1] += 1
            if found[depth - 1] < wanted[depth - 1]:
                break
            depth -= 1
            value = _apply(operators[depth], values[depth], found[depth])
            tokens[length] = END
            length += 1
        if depth == 0:
            return length, value


@numba.njit(cache=True)
def _expressions(random, max_depth, max_arguments, min_length, max_length, tries, tokens, lengths, labels):  # type: ignore[no-untyped-def]
    """Fill the rows of `tokens`; return how many were made with `tries` trees for each."""
    room = np.empty(max_length + 1, tokens.dtype)
    operators, wanted, found = (
        np.empty(max_depth, np.int64),
        np.empty(max_depth, np.int64),
        np.empty(max_depth, np.int64),
    )
    values = np.empty((max_depth, max_arguments), np.int64)
    for number in range(len(tokens)):
        length, value = -1, 0
        for _ in range(tries):
            length, value = _grow(random, max_depth, max_arguments, max_length, room, operators, wanted, found, values)
            if min_length < length < max_length:
                break
            length = -1
        if length < 0:
            return number
        tokens[number, :length] = room[:length]
        lengths[number], labels[number] = length, value
    return len(tokens)


@numba.njit(cache=True)
def _evaluate(tokens, operators, starts, values):  # type: ignore[no-untyped-def]
    """Return the value of an expression by reading it once, or -1 where it is none."""
    depth, filled = 0, 0
    for i in range(len(tokens)):
        token = tokens[i]
        if i > 0 and depth == 0:
            return NOT_AN_EXPRESSION  # something follows a whole expression
        if MIN <= token <= SM:
            operators[depth], starts[depth] = token, filled
            depth += 1
        elif FIRST_DIGIT <= token < FIRST_DIGIT + 10:
            values[filled] = token - FIRST_DIGIT
            filled += 1
        elif token == END and depth > 0 and filled > starts[depth - 1]:
            depth -= 1
            value = _apply(operators[depth], values[starts[depth] :], filled - starts[depth])
            filled = starts[depth] + 1
            values[filled - 1] = value
        else:
            return NOT_AN_EXPRESSION
    return values[0] if depth == 0 and filled == 1 else NOT_AN_EXPRESSION


def make_expressions(
    random: np.random.Generator, count: int, *, max_depth: int, max_arguments: int, min_length: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return tokens ``(count, max_length - 1)``, bytes, lengths, values, and how many of them could be made.

    Parameters
    ----------
    random : numpy.random.Generator
    count : int
    max_depth : int
        Of a digit; an operator's arguments are one deeper than itself, and the whole has depth 1.
    max_arguments : int
        Of an operator, at least 2.
    min_length, max_length : int
        Tokens lie strictly between them.
    """
    tokens = np.zeros((count, max_length - 1), np.uint8)
    lengths, labels = np.zeros(count, np.int64), np.zeros(count, np.int64)
    made = _expressions(random, max_depth, max_arguments, min_length, max_length, TRIES, tokens, lengths, labels)
    return tokens, lengths, labels, int(made)


def evaluate(tokens: np.ndarray) -> int:
    """Return the value of one expression, `NOT_AN_EXPRESSION` where `tokens` are none."""
    room: Any = [np.empty(len(tokens) + 1, np.int64) for _ in range(3)]
    return int(_evaluate(tokens, *room))
