"""Photoshop's image resources, kept byte for byte except thumbnails."""

_PHOTOSHOP_THUMBNAILS = {0x0409, 0x040C}


def without_thumbnails(photoshop: bytes) -> bytes:
    """Remove Photoshop's thumbnails, which show the image before the turn.

    Args:
        photoshop: the resource blocks (Adobe Photoshop file formats, "Image resource blocks").

    Returns:
        The other blocks, byte for byte. What cannot be read is kept as it is.
    """
    kept = bytearray()
    position = 0
    while photoshop[position : position + 4] == b"8BIM":
        name_end = position + 6 + (photoshop[position + 6] + 2 & ~1) if position + 6 < len(photoshop) else 0
        if not name_end or name_end + 4 > len(photoshop):
            break
        length = int.from_bytes(photoshop[name_end : name_end + 4], "big")
        end = name_end + 4 + length + length % 2
        if int.from_bytes(photoshop[position + 4 : position + 6], "big") not in _PHOTOSHOP_THUMBNAILS:
            kept += photoshop[position:end]
        position = end
    return bytes(kept) + photoshop[position:]
