"""The key that whole updates are sealed to (``utils/sealed_update``): ``sealing.key``, made when it is first asked for.

It is a key of its own, apart from the one that signs the log. Whoever steals it can open bodies that it recorded, each
of them inside TLS too; a new one is made once the file is gone.
"""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

from ..utils.errors import IdentityError
from ..utils.private_files import read_private_file, write_private_file
from ..utils.sealed_update import SUITE
from ..utils.secure_sum.sealing import SEED_BYTES, PrivateKey, key_pair

KEY_FILE = "sealing.key"
_MAKING = threading.Lock()


def sealing_key(folder: Path) -> tuple[PrivateKey, bytes]:
    """The private key and the bytes of the public one.

    Raises:
        IdentityError: the file is none, or others may read it too.
        StorageError: it cannot be written.
    """
    path = folder / KEY_FILE
    with _MAKING:
        if not path.exists():
            write_private_file(path, secrets.token_hex(SEED_BYTES).encode())
    try:
        return key_pair(SUITE, bytes.fromhex(read_private_file(path).decode("ascii").strip()))
    except ValueError as error:
        digits = 2 * SEED_BYTES
        raise IdentityError(f"{path}: is no key of {digits} hexadecimal digits; remove it for a new one") from error
