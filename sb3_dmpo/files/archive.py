"""Reading a zip of unknown origin: what comes out is bounded before anything of that size is made."""

import io
import zipfile
import zlib

from sb3_dmpo.files.plain_text import DamagedFileError, UnsafeFileError

#: Our files and those of Stable-Baselines3 are as large on disk as in memory. Whatever else is read into memory at once, of
#: compressed files or by tensors that share their numbers, may be so many times as large as the file, and so much more.
MAX_EXPANSION, FREE_BYTES = 10, 2 * 2**20
#: Number of entries of an archive. A model has some twenty, and its tensors, each in an archive of its own, up to thousands.
MAX_ENTRIES_OF_ARCHIVE = 20_000
#: What every entry of the directory of a zip begins with.
_DIRECTORY_ENTRY = b"PK\x01\x02"
#: Bytes before the two names of unknown length that stand before the content of an entry.
_HEADER_SIZE = 30


class Budget:
    """
    What a file may become in memory, in all.

    :param n_bytes: size of the file
    """

    def __init__(self, n_bytes: int) -> None:
        self.size = n_bytes
        self.allowed = self.left = MAX_EXPANSION * n_bytes + FREE_BYTES
        self.entries_left = MAX_ENTRIES_OF_ARCHIVE

    def take(self, n_bytes: int, what: str) -> None:
        """
        Count what is about to be made.

        :param n_bytes: its size
        :param what: what it is, for the message
        :raises UnsafeFileError: it is too much
        """
        self.left -= n_bytes
        if self.left < 0:
            raise UnsafeFileError(
                f"With {what}, of {n_bytes} bytes, the file of {self.size} bytes would grow to more than {self.allowed} in "
                "memory, as no model does. (If it was packed by hand, unpack it and pack it without compression.)"
            )

    def take_entries(self, n_entries: int) -> None:
        """
        Count entries of an archive that is about to be opened.

        :param n_entries: how many, or more
        :raises UnsafeFileError: there are too many
        """
        self.entries_left -= n_entries
        if self.entries_left < 0:
            raise UnsafeFileError(f"The file holds more than {MAX_ENTRIES_OF_ARCHIVE} entries, as no model does.")


def read_archive(content: bytes, budget: Budget, where: str = "", may_be_compressed: bool = True) -> dict[str, bytes]:
    """
    The entries of a zip by name, each with the right checksum.

    :param content: the zip
    :param budget: what the file may still become in memory
    :param where: where in the file it lies, for messages
    :param may_be_compressed: whether its entries may be
    :raises DamagedFileError: no zip, cut off, a checksum is wrong, or an entry is there twice
    :raises UnsafeFileError: too many entries, too large, or packed as no model is
    """
    try:
        # Before the directory is read, which takes time and memory for every entry. There may be fewer of them.
        budget.take_entries(content.count(_DIRECTORY_ENTRY))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            raise DamagedFileError(f"The zip{where} holds an entry twice.")
        for entry in entries:
            budget.take(entry.file_size, f"the entry '{entry.filename}'{where}")
        return {entry.filename: _read_entry(content, entry, where, may_be_compressed) for entry in entries}
    except (DamagedFileError, UnsafeFileError, MemoryError):
        raise
    except Exception as error:  # what a damaged zip leads to has no end
        raise DamagedFileError(
            f"This is no complete zip file{where} ({error}): it is damaged or was cut off. Use another copy."
        ) from None


def _read_entry(content: bytes, entry: zipfile.ZipInfo, where: str, may_be_compressed: bool) -> bytes:
    # Not by zipfile, which would unpack all that is there before it looks at the size that was announced.
    name = f"'{entry.filename}'{where}"
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if may_be_compressed else (zipfile.ZIP_STORED,)
    if entry.compress_type not in allowed or entry.flag_bits & 1:
        raise UnsafeFileError(f"The entry {name} is packed or encrypted in a way that models are not.")
    end = entry.header_offset + _HEADER_SIZE
    header = content[entry.header_offset : end]
    start = end + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
    packed = memoryview(content)[start : start + entry.compress_size]
    if not header.startswith(b"PK\x03\x04") or len(packed) < entry.compress_size:
        raise DamagedFileError(f"The entry {name} is not complete: the file is damaged or was cut off. Use another copy.")
    unpacked = bytes(packed)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, entry.file_size + 1)
    if len(unpacked) != entry.file_size or zlib.crc32(unpacked) != entry.CRC:
        raise DamagedFileError(f"The checksum of the entry {name} is wrong: the file is damaged. Use another copy.")
    return unpacked
