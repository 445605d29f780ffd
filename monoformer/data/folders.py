"""The files of a folder and of those inside it.

Knows nothing of what is in them. Invariant: links to folders are followed, every real folder is read once, and the
order is that of the paths.
"""

import os
from pathlib import Path


def files_in(root: Path) -> list[Path]:
    """Every file in a folder and in those inside it, by path, hidden ones among them.

    Folders that lie there come under their own names; a link adds what is not there yet, so that no file comes twice
    and a link to a folder above ends nowhere.
    """
    found: list[Path] = []
    read: set[tuple[int, int]] = set()
    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            for folder, inside, files in os.walk(start):
                about = Path(folder).stat()
                if (about.st_dev, about.st_ino) in read:
                    inside.clear()
                    continue
                read.add((about.st_dev, about.st_ino))
                links += [path for name in inside if (path := Path(folder, name)).is_symlink()]
                found += [path for name in files if (path := Path(folder, name)).is_file()]
        starts = sorted(links)
    return sorted(found)
