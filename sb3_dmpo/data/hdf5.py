"""HDF5 files of unknown origin: what is read lies in the file itself, and is no other file of this machine."""

from typing import Any


def check_inside(file: Any, name: str) -> None:
    """
    Refuse arrays whose content HDF5 would fetch from elsewhere: links, raw storage in other files, and virtual arrays, which
    are read as zeros where their source is missing. To be called before the array is opened.

    :param file: an open ``h5py.File``, or its id
    :param name: path of the array or group in it
    :raises ValueError: it lies elsewhere, and is not opened
    """
    import h5py

    root = file.id if isinstance(file, h5py.Group) else file
    path = b""
    for part in name.strip("/").encode().split(b"/"):
        path = path + b"/" + part
        if not root.links.exists(path):
            return
        if root.links.get_info(path).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{path.decode()} is a link, which can lead to any file: copy the array itself into the file")
    opened = h5py.h5o.open(root, path)
    if not isinstance(opened, h5py.h5d.DatasetID):
        return
    settings = opened.get_create_plist()
    if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count() > 0:
        raise ValueError(f"the numbers of {path.decode()} lie in another file: copy the array itself into this one")
