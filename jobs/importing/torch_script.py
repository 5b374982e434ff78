"""Read the weights in a TorchScript program, without running the program or loading it into torch."""

import io
import pickle
import zipfile
from typing import Any

import torch
from torch import Tensor

RECORDS = ("data.pkl", "constants.pkl")
"""Files of each TorchScript archive. One that `torch.save` wrote has the first one alone."""
STORAGE_DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
"""Classes of storages, by the names that the archive gives them."""


def is_program(data: bytes) -> bool:
    """Return whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return names.issuperset(RECORDS)


def read_program(data: bytes) -> dict[str, Tensor]:
    """Return the parameters and buffers in a TorchScript archive, by their names.

    Raises:
        pickle.UnpicklingError: when the archive holds other objects than modules, tensors and plain values.
        Exception: anything, when the archive is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].partition("/")[0]
        network = ProgramUnpickler(archive, root).load()
    tensors: dict[str, Tensor] = {}
    collect(network, "", tensors)
    return tensors


class ScriptModule:
    """The attributes of a module of a program: tensors, other modules and plain values."""


class ProgramUnpickler(pickle.Unpickler):
    """Reads data.pkl of a TorchScript archive. It resolves no name to code: every class of the program is a `ScriptModule`.

    Args:
        archive: the archive.
        root: the folder in the archive.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function that the pickle names."""
        if module.startswith("__torch__"):
            return ScriptModule
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            # The hooks of a tensor, which are empty.
            return dict
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor. `pid` is ("storage", dtype, name of the file, device, length)."""
        _, dtype, key, *_ = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor in a storage; torch checks its bounds."""
    return storage.as_strided(size, stride, offset)


def collect(module: ScriptModule, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Add the tensors of a module and of the modules in it to a dictionary, by their names."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, ScriptModule):
            collect(value, f"{prefix}{name}.", tensors)
