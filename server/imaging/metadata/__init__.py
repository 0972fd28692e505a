"""What goes along with the pixels: EXIF, XMP, Photoshop resources and colour profiles."""
