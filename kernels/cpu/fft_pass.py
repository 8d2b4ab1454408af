"""The passes of fft.

Two numbers a complex element; roots are e^(+ix), so a forward transform multiplies by their conjugates. Sums are taken in the
order of FFTPACK (Swarztrauber, 1982), so that results round as those of its descendants in NumPy and SciPy.
"""
from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba.extending import register_jitable

from gpuonnx.ir.types import numpy_dtype


@register_jitable
def put(ch: Any, at: Any, re: Any, im: Any, tw: Any, root: Any, i: Any) -> None:
    """Store a number times the conjugate of its root, which is 1 for i = 0."""
    if i == 0:
        ch[at], ch[at + 1] = re, im
    else:
        c, s = tw[root], tw[root + 1]
        ch[at], ch[at + 1] = re * c + im * s, im * c - re * s


@register_jitable
def pass2(cc: Any, ch: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
    step = 2 * ido * l1
    for k in range(l1):
        for i in range(ido):
            a = 2 * (i + ido * 2 * k)
            b, c = a + 2 * ido, 2 * (i + ido * k)
            ar, ai, br, bi = cc[a], cc[a + 1], cc[b], cc[b + 1]
            ch[c], ch[c + 1] = ar + br, ai + bi
            put(ch, c + step, ar - br, ai - bi, tw, w + 2 * i, i)


@register_jitable
def pass4(cc: Any, ch: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
    step, apart = 2 * ido * l1, 2 * ido
    for k in range(l1):
        for i in range(ido):
            a = 2 * (i + ido * 4 * k)
            out, root = 2 * (i + ido * k), w + 2 * i
            ar, ai, br, bi = cc[a], cc[a + 1], cc[a + apart], cc[a + apart + 1]
            cr, ci, dr, di = cc[a + 2 * apart], cc[a + 2 * apart + 1], cc[a + 3 * apart], cc[a + 3 * apart + 1]
            pr, pi, mr, mi = ar + cr, ai + ci, ar - cr, ai - ci
            qr, qi, nr, ni = br + dr, bi + di, bi - di, dr - br
            ch[out], ch[out + 1] = pr + qr, pi + qi
            put(ch, out + step, mr + nr, mi + ni, tw, root, i)
            put(ch, out + 2 * step, pr - qr, pi - qi, tw, root + apart, i)
            put(ch, out + 3 * step, mr - nr, mi - ni, tw, root + 2 * apart, i)


@cache
def passes(dtype: str) -> Any:  # noqa: C901
    """transform(a, b, plan, table): the transform of `a`, which both buffers are used for; gives first the one that holds it."""
    real = numpy_dtype(dtype).type
    half_root = real(math.sqrt(0.5))
    c3, s3 = real(-0.5), real(-math.sqrt(0.75))
    c51, s51, c52, s52 = (real(f(k * 2 * math.pi / 5) * sign) for k in (1, 2) for f, sign in ((math.cos, 1), (math.sin, -1)))
    zero = real(0)

    @register_jitable
    def pass3(cc: Any, ch: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
        step, apart = 2 * ido * l1, 2 * ido
        for k in range(l1):
            for i in range(ido):
                a = 2 * (i + ido * 3 * k)
                out, root = 2 * (i + ido * k), w + 2 * i
                ar, ai, br, bi = cc[a], cc[a + 1], cc[a + apart], cc[a + apart + 1]
                cr, ci = cc[a + 2 * apart], cc[a + 2 * apart + 1]
                pr, pi, mr, mi = br + cr, bi + ci, br - cr, bi - ci
                ch[out], ch[out + 1] = ar + pr, ai + pi
                xr, xi, yr, yi = ar + c3 * pr, ai + c3 * pi, -(s3 * mi), s3 * mr
                put(ch, out + step, xr + yr, xi + yi, tw, root, i)
                put(ch, out + 2 * step, xr - yr, xi - yi, tw, root + apart, i)

    @register_jitable
    def pass5(cc: Any, ch: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
        step, apart = 2 * ido * l1, 2 * ido
        for k in range(l1):
            for i in range(ido):
                a = 2 * (i + ido * 5 * k)
                out, root = 2 * (i + ido * k), w + 2 * i
                ar, ai, br, bi = cc[a], cc[a + 1], cc[a + apart], cc[a + apart + 1]
                cr, ci, dr, di = cc[a + 2 * apart], cc[a + 2 * apart + 1], cc[a + 3 * apart], cc[a + 3 * apart + 1]
                er, ei = cc[a + 4 * apart], cc[a + 4 * apart + 1]
                pr, pi, mr, mi = br + er, bi + ei, br - er, bi - ei
                qr, qi, nr, ni = cr + dr, ci + di, cr - dr, ci - di
                ch[out], ch[out + 1] = ar + pr + qr, ai + pi + qi
                xr, xi = ar + c51 * pr + c52 * qr, ai + c51 * pi + c52 * qi
                yr, yi = -(s51 * mi + s52 * ni), s51 * mr + s52 * nr
                put(ch, out + step, xr + yr, xi + yi, tw, root, i)
                put(ch, out + 4 * step, xr - yr, xi - yi, tw, root + 3 * apart, i)
                xr, xi = ar + c52 * pr + c51 * qr, ai + c52 * pi + c51 * qi
                yr, yi = -(s52 * mi - s51 * ni), s52 * mr - s51 * nr
                put(ch, out + 2 * step, xr + yr, xi + yi, tw, root + apart, i)
                put(ch, out + 3 * step, xr - yr, xi - yi, tw, root + 2 * apart, i)

    @register_jitable
    def quartet(ar: Any, ai: Any, br: Any, bi: Any, cr: Any, ci: Any, dr: Any, di: Any) -> Any:
        """The transform of four numbers."""
        pr, pi, mr, mi = ar + cr, ai + ci, ar - cr, ai - ci
        qr, qi, nr, ni = br + dr, bi + di, bi - di, dr - br
        return pr + qr, pi + qi, mr + nr, mi + ni, pr - qr, pi - qi, mr - nr, mi - ni

    @register_jitable
    def pass8(cc: Any, ch: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
        step, apart = 2 * ido * l1, 2 * ido
        for k in range(l1):
            for i in range(ido):
                a, b = 2 * (i + ido * 8 * k), 2 * (i + ido * 8 * k) + apart
                out, root, two = 2 * (i + ido * k), w + 2 * i, 2 * apart
                pr0, pi0, pr1, pi1, pr2, pi2, pr3, pi3 = quartet(
                    cc[a], cc[a + 1], cc[a + two], cc[a + two + 1], cc[a + 2 * two], cc[a + 2 * two + 1], cc[a + 3 * two], cc[a + 3 * two + 1])
                qr0, qi0, r1, i1, r2, i2, r3, i3 = quartet(
                    cc[b], cc[b + 1], cc[b + two], cc[b + two + 1], cc[b + 2 * two], cc[b + 2 * two + 1], cc[b + 3 * two], cc[b + 3 * two + 1])
                qr1, qi1 = half_root * (r1 + i1), half_root * (i1 - r1)
                qr2, qi2 = i2, -r2
                qr3, qi3 = half_root * (i3 - r3), -(half_root * (r3 + i3))
                ch[out], ch[out + 1] = pr0 + qr0, pi0 + qi0
                put(ch, out + step, pr1 + qr1, pi1 + qi1, tw, root, i)
                put(ch, out + 2 * step, pr2 + qr2, pi2 + qi2, tw, root + apart, i)
                put(ch, out + 3 * step, pr3 + qr3, pi3 + qi3, tw, root + 2 * apart, i)
                put(ch, out + 4 * step, pr0 - qr0, pi0 - qi0, tw, root + 3 * apart, i)
                put(ch, out + 5 * step, pr1 - qr1, pi1 - qi1, tw, root + 4 * apart, i)
                put(ch, out + 6 * step, pr2 - qr2, pi2 - qi2, tw, root + 5 * apart, i)
                put(ch, out + 7 * step, pr3 - qr3, pi3 - qi3, tw, root + 6 * apart, i)

    @register_jitable
    def pass_odd(cc: Any, ch: Any, p: Any, l1: Any, ido: Any, tw: Any, w: Any) -> None:
        """Any odd factor: the inputs j and p - j go in as sum and difference; the roots of 1 stand behind those of the pass."""
        step, apart = 2 * ido * l1, 2 * ido
        unit = w + 2 * (p - 1) * ido
        for k in range(l1):
            for i in range(ido):
                a, out = 2 * (i + ido * p * k), 2 * (i + ido * k)
                ar, ai = cc[a], cc[a + 1]
                tr, ti = ar, ai
                for j in range(1, (p + 1) // 2):
                    b, c = a + j * apart, a + (p - j) * apart
                    tr, ti = tr + (cc[b] + cc[c]), ti + (cc[b + 1] + cc[c + 1])
                ch[out], ch[out + 1] = tr, ti
                for m in range(1, (p + 1) // 2):
                    xr, xi, yr, yi, turn = ar, ai, zero, zero, 0
                    for j in range(1, (p + 1) // 2):
                        b, c = a + j * apart, a + (p - j) * apart
                        turn += m
                        turn = turn - p if turn >= p else turn
                        cosine, sine = tw[unit + 2 * turn], tw[unit + 2 * turn + 1]
                        xr, xi = xr + cosine * (cc[b] + cc[c]), xi + cosine * (cc[b + 1] + cc[c + 1])
                        yr, yi = yr + sine * (cc[b + 1] - cc[c + 1]), yi - sine * (cc[b] - cc[c])
                    put(ch, out + m * step, xr + yr, xi + yi, tw, w + (m - 1) * apart + 2 * i, i)
                    put(ch, out + (p - m) * step, xr - yr, xi - yi, tw, w + (p - m - 1) * apart + 2 * i, i)

    @register_jitable
    def transform(a: Any, b: Any, plan: Any, table: Any) -> Any:
        l1, place = 1, 0
        for f in range(plan[2]):
            p = plan[3 + f]
            ido = plan[0] // (l1 * p)
            if p == 4:
                pass4(a, b, l1, ido, table, place)
            elif p == 8:
                pass8(a, b, l1, ido, table, place)
            elif p == 2:
                pass2(a, b, l1, ido, table, place)
            elif p == 3:
                pass3(a, b, l1, ido, table, place)
            elif p == 5:
                pass5(a, b, l1, ido, table, place)
            elif p == 7:
                pass_odd(a, b, 7, l1, ido, table, place)
            elif p == 11:
                pass_odd(a, b, 11, l1, ido, table, place)
            else:
                pass_odd(a, b, p, l1, ido, table, place)
            place += 2 * (p - 1) * ido + (2 * p if p > 5 and p != 8 else 0)
            l1 *= p
            a, b = b, a
        return a, b
    return transform
