"""Kernels that find and convert the values of JSON records without making a Python object of each.

They know JSON's shape, not its every rule: what they do not expect (an escape, a null, a token of another
form) they report, and the caller asks the standard library.
"""

from typing import no_type_check

import numpy as np
from numba import njit

MORE, END, FULL, BROKEN = range(4)

_TAB, _LINE, _RETURN, _SPACE = 9, 10, 13, 32
_QUOTE, _COMMA, _COLON, _BACKSLASH = 34, 44, 58, 92
_OPEN, _CLOSE, _BEGIN, _FINISH = 123, 125, 91, 93  # braces, brackets
_MINUS, _PLUS, _POINT, _ZERO, _NINE = 45, 43, 46, 48, 57

_LARGEST_POWER = 280  # beyond, a double overflows on the way


@njit(cache=True)
@no_type_check
def scan(data, start, keys, key_end, spans):
    """Where the wanted values of each record begin and end: how many records, where to go on, and how it ended.

    `data` are bytes; `keys` the wanted names one after the other, `key_end` where each ends; `spans`
    [records names 2] is filled. A value that a record does not have keeps its span.
    """
    i, count, done = start, 0, start
    while count < len(spans):
        while i < len(data) and data[i] != _OPEN:
            if data[i] == _FINISH:
                return count, i, END
            if not (_is_blank(data[i]) or data[i] == _COMMA or data[i] == _BEGIN):
                return count, i, BROKEN
            i += 1
        i += 1
        whole = False
        while i < len(data):
            if data[i] == _CLOSE:
                whole = True
                break
            if _is_blank(data[i]) or data[i] == _COMMA:
                i += 1
                continue
            if data[i] != _QUOTE:
                return count, i, BROKEN
            name, i = i + 1, _value_end(data, i)
            name_end = i - 1
            while i < len(data) and (_is_blank(data[i]) or data[i] == _COLON):
                i += 1
            value, i = i, _value_end(data, i)
            if i > len(data):
                break
            begin = 0
            for column in range(len(key_end)):
                if _equal(data, name, name_end, keys, begin, key_end[column]):
                    spans[count, column, 0], spans[count, column, 1] = value, i
                begin = key_end[column]
        if not whole:
            return count, done, MORE
        count, i = count + 1, i + 1
        done = i
    return count, done, FULL


@njit(cache=True)
@no_type_check
def hex_tokens(data, spans, out):
    """The first string in each span [n 2] as bytes [n 16], zeros without one; False if some string has no such form.

    A 32-digit number is its value, a string of up to 15 bytes is itself.
    """
    for row in range(len(spans)):
        i, end = spans[row]
        while i < end and data[i] != _QUOTE:
            i += 1
        if i >= end - 1 or data[i + 1] == _QUOTE:
            out[row] = 0
            continue
        if i + 33 >= end or data[i + 33] != _QUOTE:
            if not _short(data, i + 1, end, out[row]):
                return False
            continue
        for byte in range(16):
            high, low = _digit(data[i + 1 + 2 * byte]), _digit(data[i + 2 + 2 * byte])
            if high < 0 or low < 0:
                return False
            out[row, byte] = 16 * high + low
    return True


@njit(cache=True)
@no_type_check
def _short(data, i, end, out):
    """A string of up to 15 bytes as it is, and its length in the last byte."""
    length = 0
    out[:] = 0
    while i + length < end and data[i + length] != _QUOTE:
        if length == 15 or data[i + length] == _BACKSLASH:
            return False
        out[length] = data[i + length]
        length += 1
    out[15] = 128 + length
    return True


@njit(cache=True)
@no_type_check
def numbers(data, spans, out):
    """The numbers [n k] in each span [n 2], to a unit in the last place; False if a span holds anything else."""
    for row in range(len(spans)):
        i, end = spans[row]
        for column in range(out.shape[1]):
            while i < end and (_is_blank(data[i]) or data[i] == _BEGIN or data[i] == _COMMA):
                i += 1
            if i >= end:
                return False
            out[row, column], i = _number(data, i, end)
            if i < 0:
                return False
        while i < end and (_is_blank(data[i]) or data[i] == _FINISH):
            i += 1
        if i < end:
            return False
    return True


@njit(cache=True)
@no_type_check
def gathered(data, spans, out):
    """The bytes between the quotes of each span, one after the other."""
    place = 0
    for row in range(len(spans)):
        for i in range(spans[row, 0] + 1, spans[row, 1] - 1):
            out[place] = data[i]
            place += 1


@njit(cache=True)
@no_type_check
def _is_blank(byte):
    return byte in (_SPACE, _LINE, _RETURN, _TAB)


@njit(cache=True)
@no_type_check
def _equal(data, start, end, keys, begin, finish):
    same = end - start == finish - begin
    for i in range(end - start if same else 0):
        same &= data[start + i] == keys[begin + i]
    return same


@njit(cache=True)
@no_type_check
def _value_end(data, i):
    """The place after a value; beyond the data if it is not all there."""
    depth, text = 0, False
    while i < len(data):
        byte = data[i]
        if text:
            if byte == _BACKSLASH:
                i += 1
            elif byte == _QUOTE:
                text = False
                if depth == 0:
                    return i + 1
        elif byte == _QUOTE:
            text = True
        elif byte in (_BEGIN, _OPEN):
            depth += 1
        elif byte in (_FINISH, _CLOSE):
            if depth == 0:
                return i
            depth -= 1
            if depth == 0:
                return i + 1
        elif depth == 0 and (byte == _COMMA or _is_blank(byte)):
            return i
        i += 1
    return len(data) + 1


@njit(cache=True)
@no_type_check
def _digit(byte):
    if _ZERO <= byte <= _NINE:
        return byte - _ZERO
    if 97 <= byte <= 102:
        return byte - 87
    if 65 <= byte <= 70:
        return byte - 55
    return -1


@njit(cache=True)
@no_type_check
def _number(data, i, end):
    """A number and the place after it, or -1 where there is none."""
    sign, start = 1.0, i
    if data[i] == _MINUS:
        sign, i, start = -1.0, i + 1, i + 1
    mantissa, exponent, kept, point = np.uint64(0), 0, 0, False
    while i < end and (_ZERO <= data[i] <= _NINE or (data[i] == _POINT and not point)):
        if data[i] == _POINT:
            point = True
        elif kept < 19:
            mantissa = mantissa * np.uint64(10) + np.uint64(data[i] - _ZERO)
            kept += mantissa > 0
            exponent -= point
        else:
            exponent += not point
        i += 1
    if i == start:
        return 0.0, -1
    if i < end and (data[i] == 101 or data[i] == 69):
        i, minus, power = i + 1, False, 0
        if i < end and (data[i] == _MINUS or data[i] == _PLUS):
            minus, i = data[i] == _MINUS, i + 1
        while i < end and _ZERO <= data[i] <= _NINE:
            power, i = power * 10 + (data[i] - _ZERO), i + 1
        exponent += -power if minus else power
    # Powers of ten to 22 are exact, and so is the result if the mantissa has 53 bits.
    if abs(exponent) > _LARGEST_POWER:
        return 0.0, -1
    scale = 10.0 ** abs(exponent)
    return sign * (np.float64(mantissa) / scale if exponent < 0 else np.float64(mantissa) * scale), i
