# cython: language_level=3, boundscheck=True, wraparound=False, cdivision=True, initializedcheck=False
"""The entropy-coded data of a sequential JPEG: walked once, then written in another order.

Mirroring an 8x8 block only changes the sign of the coefficients with an odd frequency in that direction, and
the code of a coefficient with the other sign has its extra bits inverted and its length unchanged. So the
bits of all AC coefficients are copied, some of them inverted, and only DC differences are coded anew, because
each block has another predecessor.

Written in Cython's pure-Python mode and compiled by `setup.py`, with the checks of all indices kept: what
comes in here is from strangers.

Source: ITU-T T.81, annexes C (Huffman tables) and F.1.2, F.2.2 (sequential coding).
"""

import cython

#: What `walk` returns when the data ends before the picture does, and what is wrong when it returns another
#: number below 0.
ENDS_EARLY = -1
FAULTS = {
    -2: "a code that is in no table",
    -3: "a coefficient out of range",
    -4: "a restart marker out of place",
    -5: "data behind the last block",
}
_ENDS_EARLY = cython.declare(cython.int, -1)
_UNKNOWN_CODE = cython.declare(cython.int, -2)
_OUT_OF_RANGE = cython.declare(cython.int, -3)
_BAD_RESTART = cython.declare(cython.int, -4)
_SURPLUS = cython.declare(cython.int, -5)

# How many bits the fast tables look at.
_FAST_BITS = cython.declare(cython.int, 11)
_ENTRIES = cython.declare(cython.int, 2048)

# Behind the last coefficient: where the walk over a block stands after its end-of-block code.
_END_OF_BLOCK = cython.declare(cython.int, 128)


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

    Args:
        short: as `build` made it.
        pairs: 2048 entries by the next 11 bits. From the lowest bit: 6 bits how many bits, 8 how many
            coefficients, 6 how many of these are of the first symbol: 0 if it is alone, 63 where not even one
            is complete; from bit 32 on 16 bits that mark the extra bits of the first, and 16 for the second.
    """
    i: cython.uint
    entry: cython.ulonglong
    first: cython.uint
    second: cython.uint
    size: cython.uint
    length: cython.uint
    taken: cython.uint
    more: cython.uint
    for i in range(_ENTRIES):
        pairs[i] = 63 << 14  # as if there were too many
        first = short[i]
        size = first & 15
        length = (first >> 8) + size
        if first == 0 or length > _FAST_BITS:
            continue
        taken = _coefficients(first & 255)
        entry = cython.cast(cython.ulonglong, (1 << size) - 1) << 48
        second = 0
        if taken < _END_OF_BLOCK:
            second = short[(i << length) & (_ENTRIES - 1)]
            size = second & 15
            more = (second >> 8) + size
            if second == 0 or length + more > _FAST_BITS:
                second = 0
        if second:
            entry = entry >> 16 << more | cython.cast(cython.ulonglong, (1 << size) - 1) << 48
            entry |= taken << 14
            length += more
            taken += _coefficients(second & 255)
        pairs[i] = entry | taken << 6 | length


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(check=False)
def _coefficients(symbol: cython.uint) -> cython.uint:
    """How many coefficients a symbol stands for: zeros and one that is none, sixteen zeros, or all others."""
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
    """The byte at a position; -1 where there is a marker or nothing. 0xFF stands for itself and a zero."""
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


@cython.ccall
@cython.exceptval(check=True)
def walk(
    data: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    end: cython.Py_ssize_t,
    mcus: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    short: cython.const[cython.ushort][::1],
    pairs: cython.const[cython.ulonglong][::1],
    limits: cython.const[cython.uint][::1],
    symbols: cython.const[cython.uchar][::1],
    inverted: cython.ulonglong,
    dc: cython.short[::1],
    starts: cython.uint[::1],
    ac: cython.uint[::1],
) -> cython.Py_ssize_t:
    """Walk over one scan: note each block's DC coefficient, and copy its AC bits, some of them inverted.

    Args:
        data: the file.
        start, end: where the scan's entropy-coded segments lie in it.
        mcus: how many there are.
        interval: MCUs from one restart marker to the next, 0 for none.
        layout: for each block of an MCU three numbers: its component, and which its DC and AC tables are.
        short, pairs, limits, symbols: the tables, one after the other, as `build` and `pair` made them.
        inverted: which coefficients change their sign, by their number in the order of coding: bit 1 for the
            DC coefficient, and bit 0 for the last.
        dc: for each block, in the order of the scan.
        starts: where the AC bits of each block start in `ac`, and in the end where they stop.
        ac: takes all AC bits, 32 in a number, the first one highest; and those of one MCU more.

    Returns:
        How many bits there are in `ac`, or what is wrong.
    """
    reg: cython.ulonglong = 0  # the next bits, the first one highest
    held: cython.int = 0  # how many of them there are
    made_up: cython.int = 0  # how many of these stand behind the data
    out: cython.ulonglong = 0
    copied: cython.Py_ssize_t = 0  # bits
    position: cython.Py_ssize_t = start
    block: cython.Py_ssize_t = 0
    mcu: cython.Py_ssize_t
    until_restart: cython.Py_ssize_t = interval
    restart: cython.uint = 0xD0
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    component: cython.int
    table: cython.Py_ssize_t
    fast: cython.Py_ssize_t
    predicted: cython.int[4]
    difference: cython.int
    byte: cython.int
    word: cython.uint
    entry: cython.uint
    both: cython.ulonglong
    bits: cython.ulonglong
    length: cython.uint
    size: cython.uint
    seen: cython.uint
    first: cython.uint
    ones: cython.uint = 0x01010101
    tops: cython.uint = ones << 7
    with cython.nogil:
        predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
        for mcu in range(mcus):
            if interval:
                if until_restart == 0:
                    if held - made_up > 7:
                        return _SURPLUS
                    if position + 1 >= end or data[position] != 0xFF or data[position + 1] != restart:
                        return _BAD_RESTART
                    position += 2
                    restart = 0xD0 | (restart + 1) & 7
                    reg = 0
                    held = made_up = 0
                    predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
                    until_restart = interval
                until_restart -= 1
            for unit in range(units):
                component = layout[3 * unit]
                table = layout[3 * unit + 1]
                while held <= 56:
                    byte = _byte_at(data, position, end)
                    if byte < 0:
                        made_up += 8
                    else:
                        reg |= cython.cast(cython.ulonglong, byte) << (56 - held)
                        position += 2 if byte == 0xFF else 1
                    held += 8
                entry = short[table << 11 | reg >> 53]
                if entry == 0:
                    entry = _long_code(cython.cast(cython.uint, reg >> 48), limits, symbols, table)
                    if entry == 0:
                        return _UNKNOWN_CODE
                length = entry >> 8
                size = entry & 255
                if size > 11:
                    return _OUT_OF_RANGE
                reg <<= length
                difference = cython.cast(cython.int, reg >> 1 >> (63 - size))
                reg <<= size
                held -= length + size
                if size and difference < 1 << (size - 1):
                    difference -= (1 << size) - 1
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
                while seen < 64:
                    if held < 32:
                        word = 0
                        if position + 4 <= end:
                            word = (
                                cython.cast(cython.uint, data[position]) << 24
                                | cython.cast(cython.uint, data[position + 1]) << 16
                                | cython.cast(cython.uint, data[position + 2]) << 8
                                | data[position + 3]
                            )
                        if word and not (~word - ones) & word & tops:  # none of them is 0xFF
                            position += 4
                            reg |= cython.cast(cython.ulonglong, word) << (32 - held)
                            held += 32
                        else:
                            while held <= 56:
                                byte = _byte_at(data, position, end)
                                if byte < 0:
                                    made_up += 8
                                else:
                                    reg |= cython.cast(cython.ulonglong, byte) << (56 - held)
                                    position += 2 if byte == 0xFF else 1
                                held += 8
                    both = pairs[fast + (reg >> 53)]
                    first = seen + (both >> 14 & 63)
                    if first < 64:
                        length = both & 63
                        bits = reg >> (64 - length)
                        bits ^= (both >> 32 & 0xFFFF) & -(inverted >> first & 1)
                        seen += both >> 6 & 255
                        bits ^= both >> 48 & -(inverted >> (seen & 63) & 1)
                    else:  # one symbol: a long one, or the last of the block
                        entry = short[fast + (reg >> 53)]
                        if entry == 0:
                            entry = _long_code(cython.cast(cython.uint, reg >> 48), limits, symbols, table)
                            if entry == 0:
                                return _UNKNOWN_CODE
                        size = entry & 15
                        length = (entry >> 8) + size
                        bits = reg >> (64 - length)
                        seen += _coefficients(entry & 255)
                        bits ^= ((cython.cast(cython.ulonglong, 1) << size) - 1) & -(
                            inverted >> (seen & 63) & 1
                        )
                    reg <<= length
                    held -= length
                    out = out << length | bits
                    ac[copied >> 5] = cython.cast(cython.uint, out << (64 - length - (copied & 31)) >> 32)
                    copied += length
                if 64 < seen < 128:  # and not by an end-of-block code
                    return _OUT_OF_RANGE
            if made_up > held:
                return _ENDS_EARLY
        if held - made_up > 7 or position < end:
            return _SURPLUS
        ac[copied >> 5] = cython.cast(cython.uint, out << (32 - (copied & 31)))
        starts[block] = cython.cast(cython.uint, copied)
        return copied


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _block_of(i: cython.Py_ssize_t, plane: cython.const[cython.Py_ssize_t][::1]) -> cython.Py_ssize_t:
    """Which block of a scan the one with this number in a plane is."""
    row: cython.Py_ssize_t = i // plane[1]
    column: cython.Py_ssize_t = i - row * plane[1]
    mcu: cython.Py_ssize_t = row // plane[2] * plane[4] + column // plane[3]
    return mcu * plane[5] + plane[6] + row % plane[2] * plane[3] + column % plane[3]


@cython.ccall
@cython.exceptval(check=True)
def unpack(
    ac: cython.const[cython.uint][::1],
    firsts: cython.const[cython.uint][::1],
    dc: cython.const[cython.short][::1],
    plane: cython.const[cython.Py_ssize_t][::1],
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
        plane: seven numbers: the component's rows and columns of blocks, its rows and columns in an MCU, MCUs
            in a row, blocks of an MCU, and which of these is the component's first.
        short, limits, symbols: its AC table.
        coefficients: row by row gets 64 for each block, in the order of coding; all zeros before.
        used: for each block gets a bit set for each coefficient, the first one lowest, that is not 0.
    """
    i: cython.Py_ssize_t
    block: cython.Py_ssize_t
    position: cython.uint
    reg: cython.ulonglong
    bits: cython.ulonglong
    entry: cython.uint
    length: cython.uint
    size: cython.int
    value: cython.int
    seen: cython.uint
    with cython.nogil:
        for i in range(plane[0] * plane[1]):
            block = _block_of(i, plane)
            coefficients[64 * i] = dc[block]
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
                    coefficients[64 * i + (seen - 1 & 63)] = value
                    bits |= cython.cast(cython.ulonglong, 1) << (seen - 1 & 63)
                position += length + size
            used[i] = bits


@cython.ccall
@cython.exceptval(check=True)
def pack(
    coefficients: cython.const[cython.short][::1],
    used: cython.const[cython.ulonglong][::1],
    plane: cython.const[cython.Py_ssize_t][::1],
    codes: cython.const[cython.uint][::1],
    size_of: cython.const[cython.uchar][::1],
    number_of: cython.const[cython.uchar][::1],
    start: cython.Py_ssize_t,
    ac: cython.uint[::1],
    firsts: cython.uint[::1],
    lasts: cython.uint[::1],
    dc: cython.short[::1],
) -> cython.Py_ssize_t:
    """Code the blocks of one component anew, behind those that are in `ac` already.

    Args:
        coefficients, used, plane: as for `unpack`.
        codes: of its AC table.
        size_of: how many extra bits a coefficient takes, by its amount (table F.2).
        number_of: 64 numbers: which bit is set in a power of two, by the highest 6 bits of its product with
            the sequence of de Bruijn below.
        start: how many bits `ac` has already.
        ac: takes the bits.
        firsts, lasts: for each block of the scan, where its bits are in `ac`.
        dc: for each block of the scan.

    Returns:
        How many bits `ac` has then; -1 when the table has no code for a symbol, -2 when `ac` is full, -3 when
        a coefficient, or all of them together, are too large for any.
    """
    i: cython.Py_ssize_t
    block: cython.Py_ssize_t
    copied: cython.Py_ssize_t = start
    out: cython.ulonglong = ac[start >> 5] >> (31 - (start & 31)) >> 1
    left: cython.ulonglong
    sequence: cython.ulonglong = 0x03F79D71B4CB0A89
    number: cython.int
    last_number: cython.int
    run: cython.int
    value: cython.int
    sign: cython.int
    amount: cython.int
    size: cython.int
    code: cython.uint
    length: cython.int
    with cython.nogil:
        for i in range(plane[0] * plane[1]):
            block = _block_of(i, plane)
            # 64 codes with their extra bits are 27 bits each at most.
            if (copied >> 5) + 64 > ac.shape[0]:
                return -2
            dc[block] = coefficients[64 * i]
            firsts[block] = cython.cast(cython.uint, copied)
            left = used[i] & ~cython.cast(cython.ulonglong, 1)
            last_number = 0
            while left or last_number < 63:
                run = 64
                value = 0
                if left:
                    number = number_of[(left & -left) * sequence >> 58]
                    run = number - last_number - 1
                    value = coefficients[64 * i + number]
                size = 0
                if run > 15 and left:
                    code = codes[0xF0]
                    last_number += 16
                    value = 0
                    sign = 0
                elif left:
                    left &= left - 1
                    last_number = number
                    sign = value >> 31
                    amount = (value ^ sign) - sign
                    if amount > 1023:
                        return -3
                    size = size_of[amount]
                    code = codes[run << 4 | size]
                else:
                    code = codes[0]
                    last_number = 63
                    sign = 0
                if code == 0:
                    return -1
                length = (code >> 16) + size
                out = (out << (code >> 16) | code & 0xFFFF) << size | (value + sign & (1 << size) - 1)
                ac[copied >> 5] = cython.cast(cython.uint, out << (64 - length - (copied & 31)) >> 32)
                copied += length
                ac[copied >> 5] = cython.cast(cython.uint, out << (31 - (copied & 31)) << 1)
            lasts[block] = cython.cast(cython.uint, copied)
            if copied >> 32:
                return -3
    return copied


@cython.ccall
@cython.exceptval(check=True)
def predict(
    dc: cython.const[cython.short][::1],
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    size_of: cython.const[cython.uchar][::1],
    differences: cython.uint[::1],
    sizes: cython.uint[::1],
) -> cython.bint:
    """Put the DC coefficients in their new order, and say how each differs from the one before (F.1.1.5.1).

    Args:
        dc: for each block, in the old order.
        across, down: MCUs in a row, and rows.
        interval: MCUs from one restart marker to the next, 0 for none.
        layout: as for `walk`.
        places: for each block of an MCU five numbers: which old block the first one is, how many blocks
            farther that of the next MCU to the right is, and that of the next MCU below; in how many MCUs to
            the right, and below, such a block holds samples.
        size_of: how many extra bits a difference takes, by its amount, from 0 to 2047 (table F.1).
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
    amount: cython.int
    size: cython.uint
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
                    amount = difference if difference >= 0 else -difference
                    if amount > 2047:
                        return False
                    size = size_of[amount]
                    if difference < 0:
                        difference += (1 << size) - 1
                    differences[block] = size << 16 | difference
                    sizes[layout[3 * unit + 1]] |= cython.cast(cython.uint, 1) << size
                    block += 1
        return True


@cython.ccall
@cython.exceptval(check=True)
def write(
    state: cython.longlong[::1],
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    differences: cython.const[cython.uint][::1],
    codes: cython.const[cython.uint][::1],
    firsts: cython.const[cython.uint][::1],
    lasts: cython.const[cython.uint][::1],
    ac: cython.const[cython.uint][::1],
    room: cython.uchar[::1],
) -> cython.Py_ssize_t:
    """Write as many MCUs as there is room for, and after the last one the bits that fill its byte.

    Args:
        state: three numbers, all 0 before the first call: the next MCU, bits that are no whole word yet, and
            how many of them there are.
        across, down, interval, layout, places, differences: as for `predict`. A block that holds no samples
            has no AC coefficients.
        codes: of all tables, as `build` made them.
        firsts, lasts: for each old block, where its bits are in `ac`.
        ac: as `walk` made it.
        room: what is written starts at its start.

    Returns:
        How many bytes were written.
    """
    out: cython.ulonglong = state[1]
    pending: cython.int = cython.cast(cython.int, state[2])
    mcu: cython.Py_ssize_t = state[0]
    mcus: cython.Py_ssize_t = across * down
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    source: cython.Py_ssize_t
    block: cython.Py_ssize_t = mcu * units
    written: cython.Py_ssize_t = 0
    # 64 codes of 27 bits, any byte of which a zero may follow, and a restart marker.
    most: cython.Py_ssize_t = units * 2 * 64 * 4 + 16
    position: cython.uint
    stop: cython.uint
    take: cython.uint
    both: cython.ulonglong
    size: cython.uint
    code: cython.uint
    with cython.nogil:
        y = mcu // across
        x = mcu - y * across
        while mcu < mcus and written + most <= room.shape[0]:
            if interval and mcu and mcu % interval == 0:
                written = _finish(out, pending, room, written)
                pending = 0
                room[written] = 0xFF
                room[written + 1] = 0xD0 | (mcu // interval - 1) & 7
                written += 2
            for unit in range(units):
                size = differences[block] >> 16
                code = codes[256 * layout[3 * unit + 1] + size]
                out = (out << (code >> 16) | code & 0xFFFF) << size | differences[block] & 0xFFFF
                pending += (code >> 16) + size
                block += 1
                if x < places[5 * unit + 3] and y < places[5 * unit + 4]:
                    source = places[5 * unit] + x * places[5 * unit + 1] + y * places[5 * unit + 2]
                    position = firsts[source]
                    stop = lasts[source]
                    while True:
                        if pending >= 32:
                            pending -= 32
                            written = _put(cython.cast(cython.uint, out >> pending), room, written)
                        if position == stop:
                            break
                        take = 32
                        if take > stop - position:
                            take = stop - position
                        both = (
                            cython.cast(cython.ulonglong, ac[position >> 5]) << 32 | ac[(position >> 5) + 1]
                        )
                        out = out << take | both << (position & 31) >> (64 - take)
                        pending += take
                        position += take
                else:
                    code = codes[256 * layout[3 * unit + 2]]
                    if pending >= 32:
                        pending -= 32
                        written = _put(cython.cast(cython.uint, out >> pending), room, written)
                    out = out << (code >> 16) | code & 0xFFFF
                    pending += code >> 16
                    if pending >= 32:
                        pending -= 32
                        written = _put(cython.cast(cython.uint, out >> pending), room, written)
            mcu += 1
            x += 1
            if x == across:
                x = 0
                y += 1
        if mcu == mcus and mcu > state[0]:
            written = _finish(out, pending, room, written)
        state[0] = mcu
        state[1] = out
        state[2] = pending
        return written


@cython.cfunc
@cython.nogil
@cython.inline
@cython.exceptval(-1)
def _put(word: cython.uint, room: cython.uchar[::1], written: cython.Py_ssize_t) -> cython.Py_ssize_t:
    """Write four bytes, each 0xFF followed by a zero (B.1.1.5)."""
    ones: cython.uint = 0x01010101
    byte: cython.uchar
    i: cython.int
    if not (~word - ones) & word & (ones << 7):
        room[written] = word >> 24
        room[written + 1] = word >> 16 & 255
        room[written + 2] = word >> 8 & 255
        room[written + 3] = word & 255
        return written + 4
    for i in range(24, -8, -8):
        byte = word >> i & 255
        room[written] = byte
        written += 1
        if byte == 0xFF:
            room[written] = 0
            written += 1
    return written


@cython.cfunc
@cython.nogil
@cython.exceptval(-1)
def _finish(
    out: cython.ulonglong, pending: cython.int, room: cython.uchar[::1], written: cython.Py_ssize_t
) -> cython.Py_ssize_t:
    """Write what is pending and fill its last byte with ones (F.1.2.3)."""
    byte: cython.uchar
    out = out << 7 | 0x7F
    pending += 7
    while pending >= 8:
        pending -= 8
        byte = out >> pending & 255
        room[written] = byte
        written += 1
        if byte == 0xFF:
            room[written] = 0
            written += 1
    return written


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
    targets: cython.const[cython.uchar][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    coefficients: cython.short[::1],
    used: cython.ulonglong[::1],
) -> cython.int:
    """Decode one scan to its quantized coefficients (F.2.2).

    Args:
        data, start, end, interval, layout, short, limits, symbols: as for `walk`.
        across, down: MCUs in a row, and rows.
        targets: for each component 64 numbers: where in its block each coefficient is put, in the order of
            their coding; with 64 added when it changes its sign.
        places: for each block of an MCU three numbers: where the first one's coefficients are, how much
            farther those of the next MCU to the right are, and those of the next MCU below.
        coefficients: all zeros.
        used: for each block gets a bit set for each coefficient, the first one lowest, that is not 0.

    Returns:
        0, or what is wrong, as `walk`.
    """
    reg: cython.ulonglong = 0
    held: cython.int = 0
    made_up: cython.int = 0
    position: cython.Py_ssize_t = start
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    place: cython.Py_ssize_t
    until_restart: cython.Py_ssize_t = interval
    restart: cython.uint = 0xD0
    unit: cython.Py_ssize_t
    units: cython.Py_ssize_t = layout.shape[0] // 3
    component: cython.int
    table: cython.Py_ssize_t
    predicted: cython.int[4]
    value: cython.int
    target: cython.int
    negation: cython.int
    bits: cython.ulonglong
    byte: cython.int
    word: cython.uint
    entry: cython.uint
    length: cython.uint
    size: cython.int
    seen: cython.uint
    ones: cython.uint = 0x01010101
    tops: cython.uint = ones << 7
    with cython.nogil:
        predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
        for y in range(down):
            for x in range(across):
                if interval:
                    if until_restart == 0:
                        if held - made_up > 7:
                            return _SURPLUS
                        if position + 1 >= end or data[position] != 0xFF or data[position + 1] != restart:
                            return _BAD_RESTART
                        position += 2
                        restart = 0xD0 | (restart + 1) & 7
                        reg = 0
                        held = made_up = 0
                        predicted[0] = predicted[1] = predicted[2] = predicted[3] = 0
                        until_restart = interval
                    until_restart -= 1
                for unit in range(units):
                    component = layout[3 * unit]
                    place = places[3 * unit] + x * places[3 * unit + 1] + y * places[3 * unit + 2]
                    table = layout[3 * unit + 1]
                    bits = 0
                    seen = 0
                    while seen < 64:
                        if held < 32:
                            word = 0
                            if position + 4 <= end:
                                word = (
                                    cython.cast(cython.uint, data[position]) << 24
                                    | cython.cast(cython.uint, data[position + 1]) << 16
                                    | cython.cast(cython.uint, data[position + 2]) << 8
                                    | data[position + 3]
                                )
                            if word and not (~word - ones) & word & tops:  # none of them is 0xFF
                                position += 4
                                reg |= cython.cast(cython.ulonglong, word) << (32 - held)
                                held += 32
                            else:
                                while held <= 56:
                                    byte = _byte_at(data, position, end)
                                    if byte < 0:
                                        made_up += 8
                                    else:
                                        reg |= cython.cast(cython.ulonglong, byte) << (56 - held)
                                        position += 2 if byte == 0xFF else 1
                                    held += 8
                        entry = short[(table << 11) + (reg >> 53)]
                        if entry == 0:
                            entry = _long_code(cython.cast(cython.uint, reg >> 48), limits, symbols, table)
                            if entry == 0:
                                return _UNKNOWN_CODE
                        length = entry >> 8
                        size = entry & 15
                        reg <<= length
                        value = cython.cast(cython.int, reg >> 1 >> (63 - size))
                        reg <<= size
                        held -= length + size
                        if size > 11:
                            return _OUT_OF_RANGE
                        # A first bit of 0 says less than 0 (F.2.2.1). A branch would be guessed wrong.
                        value += ((value >> (size - 1 if size else 0) & 1) - 1) & (1 - (1 << size))
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
                if made_up > held:
                    return _ENDS_EARLY
        if held - made_up > 7 or position < end:
            return _SURPLUS
    return 0


@cython.ccall
@cython.exceptval(check=True)
def mirror(
    old: cython.const[cython.short][::1],
    new: cython.short[::1],
    used: cython.const[cython.ulonglong][::1],
    now_used: cython.ulonglong[::1],
    number_of: cython.const[cython.uchar][::1],
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
        number_of: as for `encode`.
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
    sequence: cython.ulonglong = 0x03F79D71B4CB0A89
    # Makes what is cut off a number that is not less than 0, so that it is rounded to the nearest.
    half: cython.float = 16384.5
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
                        i = number_of[(bits & -bits) * sequence >> 58]
                        bits &= bits - 1
                        value = old[place + i] * step[i]
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
    across: cython.Py_ssize_t,
    down: cython.Py_ssize_t,
    interval: cython.Py_ssize_t,
    layout: cython.const[cython.int][::1],
    codes: cython.const[cython.uint][::1],
    places: cython.const[cython.Py_ssize_t][::1],
    real: cython.const[cython.Py_ssize_t][::1],
    size_of: cython.const[cython.uchar][::1],
    coefficients: cython.const[cython.short][::1],
    used: cython.const[cython.ulonglong][::1],
    number_of: cython.const[cython.uchar][::1],
    room: cython.uchar[::1],
) -> cython.Py_ssize_t:
    """Code as many MCUs as there is room for, and after the last one the bits that fill its byte (F.1.2).

    Args:
        state: seven numbers, all 0 before the first call: the next MCU, bits that are no whole word yet, how
            many of them there are, and the last DC coefficient of each component.
        across, down, interval, layout: of what is written.
        codes: of all tables, as `build` made them.
        places: as for `decode`, of the blocks to be written.
        real: for each block of an MCU six numbers: in which row of its component the first one is, how many
            rows the MCU below is farther, and how many rows hold samples; and the same for columns. Behind
            these nothing but the last DC coefficient is repeated.
        size_of: as for `predict`.
        coefficients, used: as from `decode`, each block in the order of coding.
        number_of: 64 numbers: which bit is set in a power of two, by the highest 6 bits of its product with
            the sequence of de Bruijn below.
        room: what is written starts at its start.

    Returns:
        How many bytes were written; -1 when a table has no code for a symbol, -2 when a coefficient is too
        large for any.
    """
    out: cython.ulonglong = state[1]
    pending: cython.int = cython.cast(cython.int, state[2])
    mcu: cython.Py_ssize_t = state[0]
    mcus: cython.Py_ssize_t = across * down
    units: cython.Py_ssize_t = layout.shape[0] // 3
    unit: cython.Py_ssize_t
    x: cython.Py_ssize_t
    y: cython.Py_ssize_t
    written: cython.Py_ssize_t = 0
    # 64 codes of 16 bits with 11 more each, any byte of which a zero may follow, and a restart marker.
    most: cython.Py_ssize_t = units * 2 * 64 * 4 + 16
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
    sign: cython.int
    amount: cython.int
    left: cython.ulonglong
    sequence: cython.ulonglong = 0x03F79D71B4CB0A89
    is_real: cython.bint
    last: cython.int[4]
    with cython.nogil:
        for k in range(4):
            last[k] = cython.cast(cython.int, state[3 + k])
        while mcu < mcus and written + most <= room.shape[0]:
            y = mcu // across
            x = mcu - y * across
            if interval and mcu and mcu % interval == 0:
                written = _finish(out, pending, room, written)
                pending = 0
                room[written] = 0xFF
                room[written + 1] = 0xD0 | (mcu // interval - 1) & 7
                written += 2
                last[0] = last[1] = last[2] = last[3] = 0
            for unit in range(units):
                component = layout[3 * unit]
                is_real = (
                    real[6 * unit] + y * real[6 * unit + 1] < real[6 * unit + 2]
                    and real[6 * unit + 3] + x * real[6 * unit + 4] < real[6 * unit + 5]
                )
                place = places[3 * unit] + x * places[3 * unit + 1] + y * places[3 * unit + 2]
                value = 0
                if is_real:
                    value = coefficients[place] - last[component]
                    last[component] = coefficients[place]
                sign = value >> 31
                amount = (value ^ sign) - sign
                if amount > 2047:
                    return -2
                size = size_of[amount]
                code = codes[256 * layout[3 * unit + 1] + size]
                if code == 0:
                    return -1
                out = (out << (code >> 16) | code & 0xFFFF) << size | (value + sign & (1 << size) - 1)
                pending += (code >> 16) + size
                if pending >= 32:
                    pending -= 32
                    written = _put(cython.cast(cython.uint, out >> pending), room, written)
                table = 256 * layout[3 * unit + 2]
                left = used[place >> 6] & ~cython.cast(cython.ulonglong, 1) if is_real else 0
                last_number = 0
                while left:
                    number = number_of[(left & -left) * sequence >> 58]
                    left &= left - 1
                    value = coefficients[place + number]
                    run = number - last_number - 1
                    last_number = number
                    while run > 15:
                        code = codes[table + 0xF0]
                        if code == 0:
                            return -1
                        out = out << (code >> 16) | code & 0xFFFF
                        pending += code >> 16
                        if pending >= 32:
                            pending -= 32
                            written = _put(cython.cast(cython.uint, out >> pending), room, written)
                        run -= 16
                    sign = value >> 31
                    amount = (value ^ sign) - sign
                    if amount > 1023:
                        return -2
                    size = size_of[amount]
                    code = codes[table + (run << 4 | size)]
                    if code == 0:
                        return -1
                    out = (out << (code >> 16) | code & 0xFFFF) << size | (value + sign & (1 << size) - 1)
                    pending += (code >> 16) + size
                    if pending >= 32:
                        pending -= 32
                        written = _put(cython.cast(cython.uint, out >> pending), room, written)
                if last_number < 63:
                    code = codes[table]
                    if code == 0:
                        return -1
                    out = out << (code >> 16) | code & 0xFFFF
                    pending += code >> 16
                    if pending >= 32:
                        pending -= 32
                        written = _put(cython.cast(cython.uint, out >> pending), room, written)
            mcu += 1
        if mcu == mcus and mcu > state[0]:
            written = _finish(out, pending, room, written)
        state[0] = mcu
        state[1] = out
        state[2] = pending
        for k in range(4):
            state[3 + k] = last[k]
    return written
