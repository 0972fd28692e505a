# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True, initializedcheck=False
"""The entropy-coded data of a sequential JPEG: reordered, or decoded, mirrored and encoded again.

Mirroring an 8x8 block only changes the sign of the coefficients with an odd frequency in that direction, and
the code of a coefficient with the other sign has its extra bits inverted and its length unchanged. So where
rows stay rows (`walk`, `predict`, `write`) the bits of all AC coefficients are copied, some of them inverted,
and only DC differences are encoded again, because each block has another predecessor.
In between, components whose edge is within a block are decoded (`unpack`), mixed (`mirror`) and encoded
(`pack`).
Where rows become columns, everything is decoded (`decode`) and encoded (`encode`).
Where no marker tells the end of a scan, it is found by its last block (`measure`).

Written in Cython's pure-Python mode and compiled by `setup.py`, with the checks of all indices kept: the
input is untrusted.

Source: ITU-T T.81, annexes C (Huffman tables) and F.1.2, F.2.2 (sequential coding).
"""

import cython

_ENDS_EARLY = cython.declare(cython.int, -1)
_UNKNOWN_CODE = cython.declare(cython.int, -2)
_OUT_OF_RANGE = cython.declare(cython.int, -3)
_BAD_RESTART = cython.declare(cython.int, -4)
_SURPLUS = cython.declare(cython.int, -5)
_TOO_LARGE = cython.declare(cython.int, -6)
_NO_CODE = cython.declare(cython.int, -7)
_NO_ROOM = cython.declare(cython.int, -8)

#: What is returned when the data ends before the image does, when a table has no code for a symbol, and when
#: there is no room for more bits. Every other number below 0 is a fault of the file.
ENDS_EARLY, NO_CODE, NO_ROOM = _ENDS_EARLY, _NO_CODE, _NO_ROOM
FAULTS = {
    _UNKNOWN_CODE: "a code that is in no table",
    _OUT_OF_RANGE: "a coefficient out of range",
    _BAD_RESTART: "a restart marker out of place",
    _SURPLUS: "data behind the last block",
    _TOO_LARGE: "a coefficient that becomes too large",
}

# How many bits the fast tables look at.
_FAST_BITS = cython.declare(cython.int, 11)
_ENTRIES = cython.declare(cython.int, 2048)

# How many bits `pair` takes at most: of the 33 that are there, as many are left as it looks at next.
_MOST_OF_A_PAIR = cython.declare(cython.int, 22)

# Behind the last coefficient: where the walk over a block stands after its end-of-block code.
_END_OF_BLOCK = cython.declare(cython.int, 128)

# Which bit is set in a power of two, by the highest 6 bits of its product with a sequence of de Bruijn.
_SEQUENCE = cython.declare(cython.ulonglong, 0x03F79D71B4CB0A89)
_NUMBER_OF = cython.declare(cython.uchar[64])

# How many extra bits a number takes, by its amount (tables F.1 and F.2).
_SIZE_OF = cython.declare(cython.uchar[2048])

_i = cython.declare(cython.int)
for _i in range(64):
    _NUMBER_OF[(cython.cast(cython.ulonglong, 1) << _i) * _SEQUENCE >> 58] = _i
_SIZE_OF[0] = 0
for _i in range(1, 2048):
    _SIZE_OF[_i] = _SIZE_OF[_i >> 1] + 1

# How many words a block takes at most: 27 bits, 63 times 31, and one word that is read ahead.
_WORDS_OF_A_BLOCK = cython.declare(cython.size_t, 64)

# How many bits there are to a marker that is not seen yet.
_FAR = cython.declare(cython.Py_ssize_t, 1 << 62)

# How far a scan is unstuffed: the next byte; bytes that are no two words yet, the first one highest, and how
# many bits these are; how many words there are; how many bits stand before the next marker, once that is
# seen; the next restart marker, and how many MCUs there are to it.
_Source = cython.struct(
    position=cython.Py_ssize_t,
    carry=cython.ulonglong,
    carried=cython.int,
    filled=cython.size_t,
    stop=cython.Py_ssize_t,
    restart=cython.uint,
    until_restart=cython.Py_ssize_t,
)

# Where the reading of these words stands: the next bits, the first one highest; how many of them count; the
# next word. Nothing but what is compiled in place is given its address, so that it stays in registers.
_Reader = cython.struct(reg=cython.ulonglong, held=cython.uint, next=cython.size_t)

# Where writing stands: bits that are no whole word yet, how many of them there are, and how many bytes are
# written.
_Writer = cython.struct(out=cython.ulonglong, pending=cython.int, written=cython.size_t)


@cython.ccall
@cython.exceptval(check=True)
def build(
    counts: cython.const[cython.uchar][::1],
    symbols: cython.const[cython.uchar][::1],
    short: cython.ushort[::1],
    limits: cython.uint[::1],
    codes: cython.uint[::1],
) -> cython.bint:
    """Make the tables for one Huffman table (C.2, F.2.2.3).

    Args:
        counts: how many codes there are of 1 to 16 bits, 16 numbers.
        symbols: in the order of their codes, filled up to 256.
        short: 2048 entries by the next 11 bits: length << 8 | symbol, 0 for a longer code.
        limits: 34 numbers: for each length from 0 to 16 the first 16 bits behind its codes; then, from 17 on,
            what to add to a code for the position of its symbol, modulo 2**32.
        codes: 256 entries by symbol: length << 16 | code, 0 for none.

    Returns:
        Whether it is a table at all: no more codes than there is room for.
    """
    code: cython.uint = 0
    position: cython.uint = 0
    length: cython.int
    i: cython.int
    first: cython.Py_ssize_t
    j: cython.Py_ssize_t
    for j in range(_ENTRIES):
        short[j] = 0
    for j in range(256):
        codes[j] = 0
    limits[0] = 0
    for length in range(1, 17):
        limits[17 + length] = position - code
        for i in range(counts[length - 1]):
            if code >= (cython.cast(cython.uint, 1) << length) or position >= symbols.shape[0]:
                return False
            codes[symbols[position]] = length << 16 | code
            if length <= _FAST_BITS:
                first = code << (_FAST_BITS - length)
                for j in range(first, first + (1 << (_FAST_BITS - length))):
                    short[j] = length << 8 | symbols[position]
            code += 1
            position += 1
        limits[length] = code << (16 - length)
        code <<= 1
    return True


@cython.ccall
@cython.exceptval(check=True)
def pair(short: cython.const[cython.ushort][::1], pairs: cython.ulonglong[::1]) -> cython.void:
    """Make the table that takes two AC symbols at once, with their extra bits (F.1.2.2).

    Those of the last symbol need not be among the bits it looks at.

    Args:
        short: as `build` made it.
        pairs: 2048 entries by the next 11 bits. From the lowest bit: 6 bits how many bits, 22 at most; 8 how
            many coefficients; 6 how many of these are of the first symbol: 0 if it is alone, 63 where not
            even one code is complete; 15 that mark the extra bits of the last symbol, and 29 for the first.
    """
    i: cython.uint
    entry: cython.ulonglong
    first: cython.uint
    second: cython.uint
    size: cython.uint
    length: cython.uint
    taken: cython.uint
    more: cython.uint
    ones: cython.ulonglong
    for i in range(_ENTRIES):
        pairs[i] = 63 << 14  # as if there were too many
        entry = 0
        first = short[i]
        size = first & 15
        length = (first >> 8) + size
        if first == 0 or length > _MOST_OF_A_PAIR:
            continue
        taken = _coefficients(first & 255)
        ones = (1 << size) - 1
        if taken < _END_OF_BLOCK and length < _FAST_BITS:
            second = short[(i << length) & (_ENTRIES - 1)]
            size = second & 15
            more = (second >> 8) + size
            if second and length + more - size <= _FAST_BITS and length + more <= _MOST_OF_A_PAIR:
                entry = ones << more << 35 | taken << 14
                ones = (1 << size) - 1
                length += more
                taken += _coefficients(second & 255)
        pairs[i] = entry | ones << 20 | taken << 6 | length


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _coefficients(symbol: cython.uint) -> cython.uint:
    """Return how many coefficients a symbol stands for: zeros and another, sixteen zeros, or all the rest."""
    if symbol & 15:
        return (symbol >> 4) + 1
    return 16 if symbol == 0xF0 else _END_OF_BLOCK


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _byte_at(
    data: cython.const[cython.uchar][::1], position: cython.Py_ssize_t, end: cython.Py_ssize_t
) -> cython.int:
    """Return the byte at a position; -1 at a marker or at the end. 0xFF stands for itself and a zero."""
    byte: cython.int
    if position >= end:
        return -1
    byte = data[position]
    if byte == 0xFF and (position + 1 == end or data[position + 1] != 0):
        return -1
    return byte


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _long_code(
    word: cython.uint,
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    table: cython.Py_ssize_t,
) -> cython.uint:
    """Find the code of 12 to 16 bits that 16 bits start with: length << 8 | symbol; 0 for none."""
    length: cython.int
    position: cython.uint
    for length in range(_FAST_BITS + 1, 17):
        if word < limits[34 * table + length]:
            position = (word >> (16 - length)) + limits[34 * table + 17 + length]
            return length << 8 | symbols[256 * table + (position & 255)]
    return 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _lowest(bits: cython.ulonglong) -> cython.int:
    """Return the number of the lowest bit that is set."""
    return _NUMBER_OF[(bits & -bits) * _SEQUENCE >> 58]


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _has_ff(word: cython.ulonglong) -> cython.bint:
    """Tell whether one of eight bytes is 0xFF."""
    ones: cython.ulonglong = 0x0101010101010101
    return (~word - ones) & word & (ones << 7) != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _unstuff(
    source: cython.pointer[_Source],
    data: cython.const[cython.uchar][::1],
    end: cython.Py_ssize_t,
    words: cython.uint[::1],
    first: cython.size_t,
) -> cython.int:
    """Move the words from `first` on to the start, and append as many more as there is room for.

    A zero after 0xFF is left out (B.1.1.5). After the data there are zeros for one block.
    """
    i: cython.size_t
    filled: cython.size_t = source.filled - first
    position: cython.size_t = source.position
    carry: cython.ulonglong = source.carry
    carried: cython.int = source.carried
    eight: cython.ulonglong
    byte: cython.int = 0
    room: cython.size_t = words.shape[0]
    if source.stop != _FAR:
        source.stop -= 32 * first
    for i in range(filled):
        words[i] = words[first + i]
    while byte >= 0 and filled + _WORDS_OF_A_BLOCK + 4 <= room:
        if position + 8 <= cython.cast(cython.size_t, end):
            eight = 0
            for i in range(8):
                eight = eight << 8 | data[position + i]
            if not _has_ff(eight):
                position += 8
                words[filled] = cython.cast(cython.uint, (carry | eight >> carried) >> 32)
                words[filled + 1] = cython.cast(cython.uint, carry | eight >> carried)
                filled += 2
                carry = eight << 1 << (63 - carried)
                continue
        for i in range(8):
            byte = _byte_at(data, position, end)
            if byte < 0:
                break
            position += 2 if byte == 0xFF else 1
            carry |= cython.cast(cython.ulonglong, byte) << (56 - carried)
            carried += 8
            if carried == 64:
                words[filled] = cython.cast(cython.uint, carry >> 32)
                words[filled + 1] = cython.cast(cython.uint, carry)
                filled += 2
                carry = 0
                carried = 0
    if byte < 0:
        if source.stop == _FAR:
            source.stop = 32 * filled + carried
        words[filled] = cython.cast(cython.uint, carry >> 32)
        words[filled + 1] = cython.cast(cython.uint, carry)
        for i in range(_WORDS_OF_A_BLOCK):
            words[filled + 2 + i] = 0
        filled += 2 + _WORDS_OF_A_BLOCK
        carry = 0
    source.filled = filled
    source.position = position
    source.carry = carry
    source.carried = carried
    return 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _fill(reader: cython.pointer[_Reader], words: cython.const[cython.uint][::1]) -> cython.int:
    """Make sure that the next 32 bits are there.

    Those of the next word are always appended, and appended again the next time if they did not count: a
    branch would often be mispredicted. 33 are there whenever one was left; no more than 32 may be skipped
    until the next time.
    """
    reader.reg |= cython.cast(cython.ulonglong, words[reader.next]) << 32 >> reader.held
    reader.next += 1 - (reader.held >> 5)
    reader.held |= 32
    return 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _skip(reader: cython.pointer[_Reader], length: cython.uint) -> cython.void:
    """Skip bits."""
    reader.reg <<= length
    reader.held -= length


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _left(source: cython.pointer[_Source], reader: cython.pointer[_Reader]) -> cython.Py_ssize_t:
    """Return how many bits there are to the next marker; less than 0 when more were read than there are."""
    return source.stop - cython.cast(cython.Py_ssize_t, 32 * reader.next - reader.held)


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _begin(
    source: cython.pointer[_Source],
    predicted: cython.p_int,
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    words: cython.uint[::1],
) -> cython.int:
    """Start to read at the start of a scan, or after a restart marker."""
    source.position = start
    source.carry = 0
    source.carried = 0
    source.filled = 0
    source.stop = _FAR
    source.until_restart = interval
    predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
    return _unstuff(source, data, end, words, 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _restart(
    source: cython.pointer[_Source],
    predicted: cython.p_int,
    left: cython.Py_ssize_t,
    data: cython.const[cython.uchar][::1],
    end: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    words: cython.uint[::1],
) -> cython.int:
    """Skip a restart marker (F.2.2.5). Returns 0, or what is wrong."""
    position: cython.Py_ssize_t = source.position
    if left > 7:
        return _SURPLUS
    if position + 1 >= end or data[position] != 0xFF or data[position + 1] != source.restart:
        return _BAD_RESTART
    source.restart = 0xD0 | (source.restart + 1) & 7
    return _begin(source, predicted, data, position + 2, end, interval, words)


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _size_of(value: cython.int, most: cython.int) -> cython.int:
    """Return how many extra bits a number takes; -1 when its amount is more than `most`."""
    sign: cython.int = value >> 31
    amount: cython.int = (value ^ sign) - sign
    return _SIZE_OF[amount] if amount <= most else -1


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _number(reg: cython.ulonglong, size: cython.int) -> cython.int:
    """Return the number whose extra bits come next. It is below 0 if the first of them is 0 (F.2.2.1)."""
    value: cython.int = cython.cast(cython.int, reg >> 1 >> (63 - size))
    # A branch would be guessed wrong.
    return value + (((value >> (size - 1 if size else 0) & 1) - 1) & (1 - (1 << size)))


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _extra(value: cython.int, size: cython.int) -> cython.uint:
    """Return the extra bits of a number (F.1.2.1)."""
    return value + (value >> 31) & (1 << size) - 1


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _emit(
    writer: cython.pointer[_Writer], bits: cython.ulonglong, length: cython.int, room: cython.uchar[::1]
) -> cython.int:
    """Append at most 32 bits, and write four bytes as soon as there are so many."""
    writer.out = writer.out << length | bits
    writer.pending += length
    if writer.pending >= 32:
        writer.pending -= 32
        writer.written = _put_word(
            cython.cast(cython.uint, writer.out >> writer.pending), room, writer.written
        )
    return 0


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _put_word(word: cython.uint, room: cython.uchar[::1], written: cython.size_t) -> cython.size_t:
    """Write four bytes, each 0xFF followed by a zero (B.1.1.5)."""
    i: cython.int
    if not _has_ff(word):
        room[written] = word >> 24
        room[written + 1] = word >> 16 & 255
        room[written + 2] = word >> 8 & 255
        room[written + 3] = word & 255
        return written + 4
    for i in range(24, -8, -8):
        written = _put(word >> i & 255, room, written)
    return written


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _put(byte: cython.uchar, room: cython.uchar[::1], written: cython.size_t) -> cython.size_t:
    """Write one byte, and a zero if it is 0xFF."""
    room[written] = byte
    if byte != 0xFF:
        return written + 1
    room[written + 1] = 0
    return written + 2


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _copy(
    writer: cython.pointer[_Writer],
    ac: cython.const[cython.uint][::1],
    first: cython.uint,
    last: cython.uint,
    room: cython.uchar[::1],
) -> cython.int:
    """Write bits of `ac`, from one position to another."""
    out: cython.ulonglong = writer.out
    pending: cython.int = writer.pending
    written: cython.size_t = writer.written
    left: cython.int = last - first
    word: cython.size_t = first >> 5
    skipped: cython.uint = first & 31
    both: cython.ulonglong = ac[word]
    while left >= 32:
        left -= 32
        word += 1
        both = both << 32 | ac[word]
        out = out << 32 | both << skipped >> 32
        written = _put_word(cython.cast(cython.uint, out >> pending), room, written)
    both = both << 32 | ac[word + 1]
    writer.out = out << left | both << skipped >> 1 >> (63 - left)
    writer.pending = pending + left
    writer.written = written
    if writer.pending >= 32:
        writer.pending -= 32
        writer.written = _put_word(cython.cast(cython.uint, writer.out >> writer.pending), room, written)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _finish(
    out: cython.ulonglong, pending: cython.int, room: cython.uchar[::1], written: cython.size_t
) -> cython.size_t:
    """Write what is pending and fill its last byte with ones (F.1.2.3)."""
    out = out << 7 | 0x7F
    pending += 7
    while pending >= 8:
        pending -= 8
        written = _put(out >> pending & 255, room, written)
    return written


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _mark_restart(
    number: cython.Py_ssize_t, room: cython.uchar[::1], written: cython.size_t
) -> cython.size_t:
    """Write a restart marker (B.1.1.3)."""
    room[written] = 0xFF
    room[written + 1] = 0xD0 | number & 7
    return written + 2


@cython.ccall
@cython.exceptval(check=True)
def walk(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    short: cython.const[cython.ushort][::1],
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    words: cython.uint[::1],
    pairs: cython.const[cython.ulonglong][::1],
    inverted: cython.ulonglong,
    dc: cython.short[::1],
    starts: cython.uint[::1],
    ac: cython.uint[::1],
) -> cython.Py_ssize_t:
    """Walk over one scan: note each block's DC coefficient, and copy its AC bits, some of them inverted.

    Args:
        data: the file.
        start, end: where the scan's entropy-coded segments lie in it.
        across, down: MCUs in a row, and rows.
        interval: MCUs from one restart marker to the next, 0 for none.
        layout: for each block of an MCU three numbers: its component, and which its DC and AC tables are.
        short, limits, symbols, pairs: the tables, one after the other, as `build` and `pair` made them.
        words: room for what is read ahead, a few times 64.
        inverted: which coefficients change their sign, by their number in the order of coding: bit 1 for the
            DC coefficient, and bit 0 for the last.
        dc: for each block, in the order of the scan.
        starts: where the AC bits of each block start in `ac`, and in the end where they stop.
        ac: takes all AC bits, 32 in a number, the first one highest; and those of one MCU more.

    Returns:
        How many bits there are in `ac`, or what is wrong.
    """
    source: _Source
    reader: _Reader
    predicted: cython.int[4]
    fault: cython.int
    left: cython.Py_ssize_t
    out: cython.ulonglong = 0
    copied: cython.size_t = 0  # bits
    block: cython.Py_ssize_t = 0
    mcu: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    component: cython.int
    table: cython.Py_ssize_t
    fast: cython.Py_ssize_t
    difference: cython.int
    entry: cython.uint
    both: cython.ulonglong
    bits: cython.ulonglong
    length: cython.uint
    size: cython.uint
    seen: cython.uint
    first: cython.uint
    word: cython.size_t
    # For each coefficient all ones if its sign changes, up to the most that an end-of-block code can give.
    marks: cython.ulonglong[256]
    with cython.nogil:
        for seen in range(256):
            marks[seen] = -(inverted >> (seen & 63) & 1)
        _begin(cython.address(source), predicted, data, start, end, interval, words)
        source.restart = 0xD0
        reader.reg = reader.held = reader.next = 0
        for mcu in range(across * down):
            if interval:
                if source.until_restart == 0:
                    left = _left(cython.address(source), cython.address(reader))
                    fault = _restart(cython.address(source), predicted, left, data, end, interval, words)
                    if fault:
                        return fault
                    reader.reg = reader.held = reader.next = 0
                source.until_restart -= 1
            for unit in range(units):
                component = layout[3 * unit]
                table = layout[3 * unit + 1]
                if source.filled < reader.next + _WORDS_OF_A_BLOCK:
                    _unstuff(cython.address(source), data, end, words, reader.next)
                    reader.next = 0
                _fill(cython.address(reader), words)
                entry = short[table << 11 | reader.reg >> 53]
                if entry == 0:
                    entry = _long_code(cython.cast(cython.uint, reader.reg >> 48), limits, symbols, table)
                    if entry == 0:
                        return _UNKNOWN_CODE
                size = entry & 255
                if size > 11:
                    return _OUT_OF_RANGE
                _skip(cython.address(reader), entry >> 8)
                difference = _number(reader.reg, size)
                _skip(cython.address(reader), size)
                difference += predicted[component]
                if difference > 32767 or difference < -32768:
                    return _OUT_OF_RANGE
                predicted[component] = difference
                dc[block] = difference
                starts[block] = cython.cast(cython.uint, copied)
                block += 1
                table = layout[3 * unit + 2]
                fast = table << 11
                seen = 1  # the DC coefficient
                _fill(cython.address(reader), words)
                while seen < 64:
                    # The table is asked first, for that takes its time; what it looks at is there.
                    both = pairs[fast + (reader.reg >> 53)]
                    _fill(cython.address(reader), words)
                    first = seen + (both >> 14 & 63)
                    if first < 64:
                        length = both & 63
                        bits = reader.reg >> (64 - length)
                        bits ^= (both & marks[first]) >> 35
                        seen += both >> 6 & 255
                        bits ^= (both & marks[seen & 255]) >> 20 & 0x7FFF
                        _skip(cython.address(reader), length)
                    else:  # one symbol: a long one, or the last of the block
                        entry = short[fast + (reader.reg >> 53)]
                        if entry == 0:
                            entry = _long_code(
                                cython.cast(cython.uint, reader.reg >> 48), limits, symbols, table
                            )
                            if entry == 0:
                                return _UNKNOWN_CODE
                        size = entry & 15
                        length = (entry >> 8) + size
                        bits = reader.reg >> (64 - length)
                        seen += _coefficients(entry & 255)
                        bits ^= ((cython.cast(cython.ulonglong, 1) << size) - 1) & -(
                            inverted >> (seen & 63) & 1
                        )
                        _skip(cython.address(reader), length)
                        _fill(cython.address(reader), words)
                    out = out << length | bits
                    word = copied >> 5
                    copied += length
                    ac[word] = cython.cast(cython.uint, out << (64 + 32 * word - copied) >> 32)
                if 64 < seen < 128:  # and not by an end-of-block code
                    return _OUT_OF_RANGE
            if _left(cython.address(source), cython.address(reader)) < 0:
                return _ENDS_EARLY
        if _left(cython.address(source), cython.address(reader)) > 7 or source.position < end:
            return _SURPLUS
        ac[copied >> 5] = cython.cast(cython.uint, out << (32 - (copied & 31)))
        starts[block] = cython.cast(cython.uint, copied)
        return copied


@cython.ccall
@cython.exceptval(check=True)
def unpack(
    ac: cython.const[cython.uint][::1],
    firsts: cython.const[cython.uint][::1],
    dc: cython.const[cython.short][::1],
    blocks: cython.const[cython.Py_ssize_t][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    short: cython.const[cython.ushort][::1],
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    coefficients: cython.short[::1],
    used: cython.ulonglong[::1],
) -> cython.void:
    """Decode the blocks of one component that `walk` has found sound.

    Args:
        ac, dc: as `walk` made them.
        firsts: for each block of the scan, where its bits start in `ac`.
        blocks: four numbers: MCUs in a row, and rows; blocks of an MCU, and which of these is the component's
            first.
        places: as for `decode`, of the component's blocks.
        short, limits, symbols: its AC table.
        coefficients, used: as for `decode`, but all in the order of coding.
    """
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    block: cython.Py_ssize_t
    place: cython.Py_ssize_t
    position: cython.uint
    reg: cython.ulonglong
    bits: cython.ulonglong
    entry: cython.uint
    length: cython.uint
    size: cython.int
    value: cython.int
    seen: cython.uint
    with cython.nogil:
        for y in range(blocks[1]):
            for x in range(blocks[0]):
                for unit in range(places.shape[0] // 5):
                    block = (y * blocks[0] + x) * blocks[2] + blocks[3] + unit
                    place = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                    coefficients[place] = dc[block]
                    position = firsts[block]
                    bits = 0
                    seen = 1
                    while seen < 64:
                        reg = cython.cast(cython.ulonglong, ac[position >> 5]) << 32 | ac[(position >> 5) + 1]
                        reg <<= position & 31
                        entry = short[reg >> 53]
                        if entry == 0:
                            entry = _long_code(cython.cast(cython.uint, reg >> 48), limits, symbols, 0)
                        length = entry >> 8
                        size = entry & 15
                        seen += _coefficients(entry & 255)
                        if size:
                            value = cython.cast(cython.int, reg << length >> 1 >> (63 - size))
                            value += ((value >> (size - 1) & 1) - 1) & (1 - (1 << size))
                            coefficients[place + (seen - 1 & 63)] = value
                            bits |= cython.cast(cython.ulonglong, 1) << (seen - 1 & 63)
                        position += length + size
                    used[place >> 6] = bits


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _append(
    writer: cython.pointer[_Writer], bits: cython.ulonglong, length: cython.int, ac: cython.uint[::1]
) -> cython.int:
    """Append at most 32 bits to an array of 32-bit numbers."""
    writer.out = writer.out << length | bits
    writer.pending += length
    if writer.pending >= 32:
        writer.pending -= 32
        ac[writer.written] = cython.cast(cython.uint, writer.out >> writer.pending)
        writer.written += 1
    return 0


@cython.ccall
@cython.exceptval(check=True)
def pack(
    coefficients: cython.const[cython.short][::1],
    used: cython.const[cython.ulonglong][::1],
    blocks: cython.const[cython.Py_ssize_t][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    codes: cython.const[cython.uint][::1],
    start: cython.Py_ssize_t,
    ac: cython.uint[::1],
    firsts: cython.uint[::1],
    lasts: cython.uint[::1],
    dc: cython.short[::1],
) -> cython.Py_ssize_t:
    """Encode the blocks of one component again, after those that are already in `ac`.

    Args:
        coefficients, used, blocks, places: as for `unpack`.
        codes: of its AC table.
        start: how many bits `ac` has already.
        ac: takes the bits.
        firsts, lasts: for each block of the scan, where its bits are in `ac`.
        dc: for each block of the scan.

    Returns:
        How many bits `ac` has then, or what is wrong.
    """
    writer: _Writer
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    block: cython.Py_ssize_t
    place: cython.Py_ssize_t
    left: cython.ulonglong
    number: cython.int
    last_number: cython.int
    run: cython.int
    value: cython.int
    size: cython.int
    code: cython.uint
    with cython.nogil:
        writer.written = start >> 5
        writer.pending = start & 31
        writer.out = cython.cast(cython.ulonglong, ac[start >> 5]) >> (32 - writer.pending)
        for y in range(blocks[1]):
            for x in range(blocks[0]):
                for unit in range(places.shape[0] // 5):
                    block = (y * blocks[0] + x) * blocks[2] + blocks[3] + unit
                    place = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                    # 63 codes of 16 bits with 10 more each are 52 numbers.
                    if writer.written + 64 > ac.shape[0]:
                        return _NO_ROOM
                    dc[block] = coefficients[place]
                    firsts[block] = cython.cast(cython.uint, 32 * writer.written + writer.pending)
                    left = used[place >> 6] & ~cython.cast(cython.ulonglong, 1)
                    last_number = 0
                    while left:
                        number = _lowest(left)
                        left &= left - 1
                        run = number - last_number - 1
                        last_number = number
                        while run > 15:
                            code = codes[0xF0]
                            if code == 0:
                                return _NO_CODE
                            _append(cython.address(writer), code & 0xFFFF, code >> 16, ac)
                            run -= 16
                        value = coefficients[place + number]
                        size = _size_of(value, 1023)
                        if size < 0:
                            return _TOO_LARGE
                        code = codes[run << 4 | size]
                        if code == 0:
                            return _NO_CODE
                        _append(
                            cython.address(writer),
                            (code & 0xFFFF) << size | _extra(value, size),
                            (code >> 16) + size,
                            ac,
                        )
                    if last_number < 63:
                        code = codes[0]
                        if code == 0:
                            return _NO_CODE
                        _append(cython.address(writer), code & 0xFFFF, code >> 16, ac)
                    lasts[block] = cython.cast(cython.uint, 32 * writer.written + writer.pending)
                    if writer.written >> 27:  # they are counted with 32 bits
                        return _TOO_LARGE
        ac[writer.written] = cython.cast(cython.uint, writer.out << (32 - writer.pending))
        return 32 * writer.written + writer.pending


@cython.ccall
@cython.exceptval(check=True)
def predict(
    dc: cython.const[cython.short][::1],
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    differences: cython.uint[::1],
    sizes: cython.uint[::1],
) -> cython.bint:
    """Put the DC coefficients in their new order, and say how each differs from the one before (F.1.1.5.1).

    Args:
        dc: for each block, in the old order.
        across, down, interval, layout: as for `walk`.
        places: as for `decode`, but by the number of an old block.
        differences: for each block, in the new order: how many extra bits << 16 | these bits.
        sizes: by number of a DC table, gets a bit set for each size that it must have a code for.

    Returns:
        Whether all differences are within what can be coded.
    """
    predicted: cython.int[4]
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    block: cython.Py_ssize_t = 0
    until_restart: cython.Py_ssize_t = interval
    value: cython.int
    component: cython.int
    difference: cython.int
    size: cython.int
    with cython.nogil:
        predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
        for y in range(down):
            for x in range(across):
                if interval:
                    if until_restart == 0:
                        predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
                        until_restart = interval
                    until_restart -= 1
                for unit in range(units):
                    component = layout[3 * unit]
                    difference = 0
                    if x < places[5 * unit + 3] and y < places[5 * unit + 4]:
                        value = dc[places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]]
                        difference = value - predicted[component]
                        predicted[component] = value
                    size = _size_of(difference, 2047)
                    if size < 0:
                        return False
                    differences[block] = size << 16 | _extra(difference, size)
                    sizes[layout[3 * unit + 1]] |= cython.cast(cython.uint, 1) << size
                    block += 1
        return True


@cython.ccall
@cython.exceptval(check=True)
def write(
    state: cython.longlong[::1],
    room: cython.uchar[::1],
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    codes: cython.const[cython.uint][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    differences: cython.const[cython.uint][::1],
    firsts: cython.const[cython.uint][::1],
    lasts: cython.const[cython.uint][::1],
    ac: cython.const[cython.uint][::1],
) -> cython.Py_ssize_t:
    """Write as many MCUs as there is room for, and after the last one the bits that fill its byte.

    Args:
        state: three numbers, all 0 before the first call: the next MCU, bits that are no whole word yet, and
            how many of them there are.
        room: what is written starts at its start.
        across, down, interval, layout: as for `walk`.
        codes: of all tables, as `build` made them.
        places, differences: as for `predict`. A block that holds no samples has no AC coefficients.
        firsts, lasts: for each old block, where its bits are in `ac`.
        ac: as `walk` made it.

    Returns:
        How many bytes were written.
    """
    writer: _Writer
    mcu: cython.Py_ssize_t = state[0]
    mcus: cython.Py_ssize_t = across * down
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    source: cython.Py_ssize_t
    block: cython.Py_ssize_t = mcu * units
    # 64 codes of 16 bits with 15 more each, any byte of which a zero may follow, and a restart marker.
    most: cython.size_t = units * 2 * 64 * 4 + 16
    size: cython.uint
    code: cython.uint
    with cython.nogil:
        writer.out = state[1]
        writer.pending = cython.cast(cython.int, state[2])
        writer.written = 0
        y = mcu // across
        x = mcu - y * across
        while mcu < mcus and writer.written + most <= cython.cast(cython.size_t, room.shape[0]):
            if interval and mcu and mcu % interval == 0:
                writer.written = _finish(writer.out, writer.pending, room, writer.written)
                writer.pending = 0
                writer.written = _mark_restart(mcu // interval - 1, room, writer.written)
            for unit in range(units):
                size = differences[block] >> 16
                code = codes[256 * layout[3 * unit + 1] + size]
                _emit(
                    cython.address(writer),
                    (code & 0xFFFF) << size | differences[block] & 0xFFFF,
                    (code >> 16) + size,
                    room,
                )
                block += 1
                if x < places[5 * unit + 3] and y < places[5 * unit + 4]:
                    source = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                    _copy(cython.address(writer), ac, firsts[source], lasts[source], room)
                else:
                    code = codes[256 * layout[3 * unit + 2]]
                    _emit(cython.address(writer), code & 0xFFFF, code >> 16, room)
            mcu += 1
            x += 1
            if x == across:
                x = 0
                y += 1
        if mcu == mcus and mcu > state[0]:
            writer.written = _finish(writer.out, writer.pending, room, writer.written)
        state[0] = mcu
        state[1] = writer.out
        state[2] = writer.pending
        return writer.written


@cython.ccall
@cython.exceptval(check=True)
def decode(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    short: cython.const[cython.ushort][::1],
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    words: cython.uint[::1],
    targets: cython.const[cython.uchar][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    coefficients: cython.short[::1],
    used: cython.ulonglong[::1],
) -> cython.int:
    """Decode one scan to its quantized coefficients (F.2.2).

    Args:
        data, start, end, across, down, interval, layout, short, limits, symbols, words: as for `walk`.
        targets: for each component 64 numbers: where in its block each coefficient is put, in the order of
            their coding; with 64 added when it changes its sign.
        places: for each block of an MCU five numbers: where the first one's coefficients are, how much
            farther those of the next MCU to the right are, and those of the next MCU below; in how many MCUs
            to the right, and below, such a block holds samples, which does not matter here.
        coefficients: all zeros.
        used: for each block gets a bit set for each coefficient, the first one lowest, that is not 0.

    Returns:
        0, or what is wrong.
    """
    source: _Source
    reader: _Reader
    predicted: cython.int[4]
    fault: cython.int
    left: cython.Py_ssize_t
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    place: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    component: cython.int
    table: cython.Py_ssize_t
    value: cython.int
    target: cython.int
    negation: cython.int
    bits: cython.ulonglong
    entry: cython.uint
    size: cython.int
    seen: cython.uint
    with cython.nogil:
        _begin(cython.address(source), predicted, data, start, end, interval, words)
        source.restart = 0xD0
        reader.reg = reader.held = reader.next = 0
        for y in range(down):
            for x in range(across):
                if interval:
                    if source.until_restart == 0:
                        left = _left(cython.address(source), cython.address(reader))
                        fault = _restart(cython.address(source), predicted, left, data, end, interval, words)
                        if fault:
                            return fault
                        reader.reg = reader.held = reader.next = 0
                    source.until_restart -= 1
                for unit in range(units):
                    component = layout[3 * unit]
                    place = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                    table = layout[3 * unit + 1]
                    bits = 0
                    seen = 0
                    if source.filled < reader.next + _WORDS_OF_A_BLOCK:
                        _unstuff(cython.address(source), data, end, words, reader.next)
                        reader.next = 0
                    while seen < 64:
                        _fill(cython.address(reader), words)
                        entry = short[(table << 11) + (reader.reg >> 53)]
                        if entry == 0:
                            entry = _long_code(
                                cython.cast(cython.uint, reader.reg >> 48), limits, symbols, table
                            )
                            if entry == 0:
                                return _UNKNOWN_CODE
                        size = entry & 15
                        _skip(cython.address(reader), entry >> 8)
                        value = _number(reader.reg, size)
                        _skip(cython.address(reader), size)
                        if size > 11:
                            return _OUT_OF_RANGE
                        if seen == 0:
                            if entry & 0xF0:
                                return _OUT_OF_RANGE
                            value += predicted[component]
                            if value > 32767 or value < -32768:
                                return _OUT_OF_RANGE
                            predicted[component] = value
                            coefficients[place] = value
                            table = layout[3 * unit + 2]
                            seen = 1
                        elif size:
                            seen += (entry >> 4 & 15) + 1
                            if seen > 64:
                                return _OUT_OF_RANGE
                            target = targets[64 * component + seen - 1]
                            negation = -(target >> 6)
                            coefficients[place + (target & 63)] = (value ^ negation) - negation
                            bits |= cython.cast(cython.ulonglong, 1) << (target & 63)
                        else:
                            seen += _coefficients(entry & 255)
                            if 64 < seen < 128:
                                return _OUT_OF_RANGE
                    used[place >> 6] = bits
                if _left(cython.address(source), cython.address(reader)) < 0:
                    return _ENDS_EARLY
        if _left(cython.address(source), cython.address(reader)) > 7 or source.position < end:
            return _SURPLUS
    return 0


@cython.ccall
@cython.exceptval(check=True)
def measure(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    short: cython.const[cython.ushort][::1],
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    words: cython.uint[::1],
) -> cython.Py_ssize_t:
    """Find where the last MCU of a scan ends, whatever follows it.

    Args:
        data, start, across, down, interval, layout, short, limits, symbols, words: as for `walk`.
        end: where the data ends at the latest.

    Returns:
        The position behind the byte with its last bit, or what is wrong. The rest of that byte is ones, as
        encoders fill it (F.1.2.3): after a cut, decoding would run on into bytes of another kind.
    """
    source: _Source
    reader: _Reader
    predicted: cython.int[4]
    fault: cython.int
    left: cython.Py_ssize_t
    mcu: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    component: cython.int
    table: cython.Py_ssize_t
    entry: cython.uint
    size: cython.int
    seen: cython.uint
    position: cython.Py_ssize_t
    with cython.nogil:
        _begin(cython.address(source), predicted, data, start, end, interval, words)
        source.restart = 0xD0
        reader.reg = reader.held = reader.next = 0
        for mcu in range(across * down):
            if interval:
                if source.until_restart == 0:
                    left = _left(cython.address(source), cython.address(reader))
                    fault = _restart(cython.address(source), predicted, left, data, end, interval, words)
                    if fault:
                        return fault
                    reader.reg = reader.held = reader.next = 0
                source.until_restart -= 1
            for unit in range(units):
                component = layout[3 * unit]
                table = layout[3 * unit + 1]
                seen = 0
                if source.filled < reader.next + _WORDS_OF_A_BLOCK:
                    _unstuff(cython.address(source), data, end, words, reader.next)
                    reader.next = 0
                while seen < 64:
                    _fill(cython.address(reader), words)
                    entry = short[(table << 11) + (reader.reg >> 53)]
                    if entry == 0:
                        entry = _long_code(cython.cast(cython.uint, reader.reg >> 48), limits, symbols, table)
                        if entry == 0:
                            return _UNKNOWN_CODE
                    _skip(cython.address(reader), entry >> 8)
                    size = entry & 15
                    if seen == 0:
                        if entry & 0xF0 or size > 11:
                            return _OUT_OF_RANGE
                        predicted[component] += _number(reader.reg, size)
                        if predicted[component] > 32767 or predicted[component] < -32768:
                            return _OUT_OF_RANGE
                        table = layout[3 * unit + 2]
                        seen = 1
                    else:
                        seen += _coefficients(entry & 255)
                        if 64 < seen < 128:
                            return _OUT_OF_RANGE
                    _skip(cython.address(reader), size)
            if _left(cython.address(source), cython.address(reader)) < 0:
                return _ENDS_EARLY
        _fill(cython.address(reader), words)
        # Back from what is unstuffed, by the bytes that were not needed.
        left = source.stop
        if left == _FAR:
            left = 32 * source.filled + source.carried
        left -= cython.cast(cython.Py_ssize_t, 32 * reader.next - reader.held)
        size = left & 7
        if size and reader.reg >> (64 - size) != (1 << size) - 1:
            return _SURPLUS
        position = source.position
        for mcu in range(left >> 3):
            position -= 2 if position >= 2 and data[position - 1] == 0 and data[position - 2] == 0xFF else 1
        return position


@cython.ccall
@cython.exceptval(check=True)
def mirror(
    old: cython.const[cython.short][::1],
    new: cython.short[::1],
    used: cython.const[cython.ulonglong][::1],
    now_used: cython.ulonglong[::1],
    lines: cython.Py_ssize_t,
    to_next_line: cython.Py_ssize_t,
    blocks: cython.Py_ssize_t,
    to_next_block: cython.Py_ssize_t,
    is_across: cython.bint,
    positions: cython.const[cython.uchar][::1],
    steps: cython.const[cython.ushort][::1],
    matrices: cython.const[cython.double][::1],
) -> cython.bint:
    """Mirror lines of blocks whose far edge is not that of their last block: every sample moves by some rows.

    In the direction of the line each new block is a linear mixture of two old ones, which touches no
    frequency of the other direction. So what was quantized away in that direction stays away, and nothing
    but the new quantization is rounded.

    Args:
        old, new: coefficients.
        used, now_used: which of these are not 0, as from `decode`.
        lines: how many there are.
        to_next_line, to_next_block: how far apart their coefficients are.
        blocks: how many a line has that hold samples.
        is_across: lines run across, and columns are mirrored; else they run down, and rows are.
        positions: which frequency each coefficient of a block is of, 8 * down + across.
        steps: what each is multiplied with (quantization).
        matrices: three of 8x8, at 8 * w + v what frequency w of an old block adds to frequency v of a new
            one: of the old block in the mirrored place, of the one before that, and, for the last new block,
            of the first old one.

    Returns:
        Whether all new coefficients are within what can be coded.
    """
    # C arrays of what is used for every block: the compiler then works on four numbers at once.
    mixture: cython.float[192]
    step: cython.float[64]
    inverse: cython.float[64]
    slot: cython.int[64]
    sums: cython.float[64]
    line: cython.Py_ssize_t
    block: cython.Py_ssize_t
    place: cython.Py_ssize_t
    part: cython.Py_ssize_t
    parts: cython.Py_ssize_t
    matrix: cython.Py_ssize_t
    i: cython.int
    v: cython.int
    frequency: cython.int
    other: cython.int
    value: cython.float
    rounded: cython.int
    most: cython.int
    bits: cython.ulonglong
    # Makes what is cut off a number that is not less than 0, so that it is rounded to the nearest.
    half: cython.float = 16384.5
    # Sums of 16 such numbers are within what an integer holds. Only coefficients above 1024 exceed it.
    limit: cython.float = 1 << 26
    with cython.nogil:
        for i in range(192):
            mixture[i] = cython.cast(cython.float, matrices[i])
        for i in range(64):
            frequency = positions[i] & 7 if is_across else positions[i] >> 3 & 7
            other = positions[i] >> 3 & 7 if is_across else positions[i] & 7
            slot[i] = 8 * other + frequency
            step[i] = steps[i]
            inverse[i] = cython.cast(cython.float, 1.0) / step[i]
        for line in range(lines):
            for block in range(blocks):
                for i in range(64):
                    sums[i] = 0
                parts = 1 if block == blocks - 1 else 2
                for part in range(parts):
                    matrix = 128 if parts == 1 else 64 * part
                    place = line * to_next_line + (blocks - 1 - block - part) * to_next_block
                    bits = used[place >> 6] | 1
                    while bits:
                        i = _lowest(bits)
                        bits &= bits - 1
                        value = old[place + i] * step[i]
                        if value > limit or value < -limit:
                            return False
                        frequency = matrix + 8 * (slot[i] & 7)
                        other = slot[i] & 56
                        for v in range(8):
                            sums[other + v] += value * mixture[frequency + v]
                place = line * to_next_line + block * to_next_block
                bits = 0
                most = 0
                for i in range(64):
                    rounded = cython.cast(cython.int, sums[slot[i]] * inverse[i] + half) - 16384
                    most |= rounded + 1024
                    new[place + i] = rounded
                    bits |= cython.cast(cython.ulonglong, rounded != 0) << i
                if most & ~2047:
                    return False
                now_used[place >> 6] = bits
    return True


@cython.ccall
@cython.exceptval(check=True)
def encode(
    state: cython.longlong[::1],
    room: cython.uchar[::1],
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    codes: cython.const[cython.uint][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    coefficients: cython.const[cython.short][::1],
    used: cython.const[cython.ulonglong][::1],
) -> cython.Py_ssize_t:
    """Code as many MCUs as there is room for, and after the last one the bits that fill its byte (F.1.2).

    Args:
        state: seven numbers, all 0 before the first call: the next MCU, bits that are no whole word yet, how
            many of them there are, and the last DC coefficient of each component.
        room: what is written starts at its start.
        across, down, interval, layout: of what is written.
        codes: of all tables, as `build` made them.
        places: as for `decode`, of the blocks to be written. Where these hold no samples, nothing but the
            last DC coefficient is repeated.
        coefficients, used: as from `decode`, each block in the order of coding.

    Returns:
        How many bytes were written, or what is wrong.
    """
    # Variables, and no writer: that would cost 5 %, for so many calls are not compiled in place.
    out: cython.ulonglong = state[1]
    pending: cython.int = cython.cast(cython.int, state[2])
    written: cython.size_t = 0
    mcu: cython.Py_ssize_t = state[0]
    mcus: cython.Py_ssize_t = across * down
    units: cython.Py_ssize_t = layout.shape[0] // 3
    unit: cython.Py_ssize_t
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    # 64 codes of 16 bits with 11 more each, any byte of which a zero may follow, and a restart marker.
    most: cython.size_t = units * 2 * 64 * 4 + 16
    place: cython.Py_ssize_t
    component: cython.int
    table: cython.Py_ssize_t
    value: cython.int
    size: cython.int
    run: cython.int
    code: cython.uint
    k: cython.int
    number: cython.int
    last_number: cython.int
    left: cython.ulonglong
    is_real: cython.bint
    last: cython.int[4]
    with cython.nogil:
        for k in range(4):
            last[k] = cython.cast(cython.int, state[3 + k])
        while mcu < mcus and written + most <= cython.cast(cython.size_t, room.shape[0]):
            y = mcu // across
            x = mcu - y * across
            if interval and mcu and mcu % interval == 0:
                written = _finish(out, pending, room, written)
                pending = 0
                written = _mark_restart(mcu // interval - 1, room, written)
                last[0] = last[1] = last[2] = last[3] = 0
            for unit in range(units):
                component = layout[3 * unit]
                is_real = x < places[5 * unit + 3] and y < places[5 * unit + 4]
                place = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                value = 0
                if is_real:
                    value = coefficients[place] - last[component]
                    last[component] = coefficients[place]
                size = _size_of(value, 2047)
                if size < 0:
                    return _TOO_LARGE
                code = codes[256 * layout[3 * unit + 1] + size]
                if code == 0:
                    return _NO_CODE
                out = (out << (code >> 16) | code & 0xFFFF) << size | _extra(value, size)
                pending += (code >> 16) + size
                if pending >= 32:
                    pending -= 32
                    written = _put_word(cython.cast(cython.uint, out >> pending), room, written)
                table = 256 * layout[3 * unit + 2]
                left = used[place >> 6] & ~cython.cast(cython.ulonglong, 1) if is_real else 0
                last_number = 0
                while left:
                    number = _lowest(left)
                    left &= left - 1
                    value = coefficients[place + number]
                    run = number - last_number - 1
                    last_number = number
                    while run > 15:
                        code = codes[table + 0xF0]
                        if code == 0:
                            return _NO_CODE
                        out = out << (code >> 16) | code & 0xFFFF
                        pending += code >> 16
                        if pending >= 32:
                            pending -= 32
                            written = _put_word(cython.cast(cython.uint, out >> pending), room, written)
                        run -= 16
                    size = _size_of(value, 1023)
                    if size < 0:
                        return _TOO_LARGE
                    code = codes[table + (run << 4 | size)]
                    if code == 0:
                        return _NO_CODE
                    out = (out << (code >> 16) | code & 0xFFFF) << size | _extra(value, size)
                    pending += (code >> 16) + size
                    if pending >= 32:
                        pending -= 32
                        written = _put_word(cython.cast(cython.uint, out >> pending), room, written)
                if last_number < 63:
                    code = codes[table]
                    if code == 0:
                        return _NO_CODE
                    out = out << (code >> 16) | code & 0xFFFF
                    pending += code >> 16
                    if pending >= 32:
                        pending -= 32
                        written = _put_word(cython.cast(cython.uint, out >> pending), room, written)
            mcu += 1
        if mcu == mcus and mcu > state[0]:
            written = _finish(out, pending, room, written)
        state[0] = mcu
        state[1] = out
        state[2] = pending
        for k in range(4):
            state[3 + k] = last[k]
    return written
