"""Which formats of photographs are read, and the packages that some of them need."""

import importlib.util
import io
import posixpath
import struct

import tifffile
from PIL import features

# Pillow's name of a format (`RAW` stands for those of cameras), and the extensions of its files.
EXTENSIONS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "RAW": (".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2"),
}
FORMAT_OF = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions}
# Package of a format that is optional, and the extra that installs it.
OPTIONAL = {"HEIF": ("pillow_heif", "heif"), "RAW": ("rawpy", "raw")}
RAW_STARTS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW")  # Olympus, Panasonic, Fujifilm
TIFF_STARTS = (b"II*\0", b"MM\0*")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
DNG_VERSION, PHOTOMETRIC = 50706, 262
SENSOR_COLOURS = (32803, 34892)  # colour filter array, linear raw


def format_of(name: str) -> str:
    """The format that a file's name stands for; empty if it is none of `EXTENSIONS`."""
    return FORMAT_OF.get(posixpath.splitext(name.lower())[1], "")


def lacks(name: str) -> str:
    """Why a format cannot be read here, with the remedy; empty if it can."""
    if name == "AVIF" and not features.check("avif"):
        return "AVIF needs a Pillow that was built with it; install pillow 11.3 or newer from its wheels"
    package, extra = OPTIONAL.get(name, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        return f"{name} needs {package}; install it with pip install 'reddit-on-ray[{extra}]'"
    return ""


def not_read(name: str) -> str:
    """Why a file is not read, judged by its name; empty if it is."""
    found = format_of(name)
    extension = posixpath.splitext(name)[1]
    return lacks(found) if found else f"{extension or 'no extension'} is no format that is read"


def readable() -> tuple[str, ...]:
    """The formats that can be read here."""
    return tuple(name for name in EXTENSIONS if not lacks(name))


def is_raw(data: bytes) -> bool:
    """Whether bytes are a camera's RAW file; those of most cameras are TIFF files with the sensor's colours inside."""
    if data.startswith(RAW_STARTS) or data[4:12] == b"ftypcrx ":
        return True
    if not data.startswith(TIFF_STARTS):
        return False
    if data[8:10] == b"CR":
        return True
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            main = file.pages[0].aspage()
            pages = [main, *(page.aspage() for page in main.pages or ())]
            return DNG_VERSION in main.tags or any(page.tags.valueof(PHOTOMETRIC) in SENSOR_COLOURS for page in pages)
    except (ValueError, IndexError, KeyError, TypeError, struct.error, tifffile.TiffFileError):
        return False  # damage, which decoding names


def is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS
