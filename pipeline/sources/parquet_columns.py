"""The types of Parquet columns: which can hold encoded images, which can name images, and which can be copied as JSON."""

from typing import Any

import pyarrow as pa

from imagemill.pipeline.errors import ConfigError

BINARY_TYPES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
LIST_TYPES = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary type, and other types unchanged.

    Extension types such as UUIDs stay as they are: they count neither as binary nor as text.
    """
    return value_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a type is binary, also behind a dictionary."""
    return any(is_kind(value_type(kind)) for is_kind in BINARY_TYPES)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text, also behind a dictionary."""
    return any(is_kind(value_type(kind)) for is_kind in TEXT_TYPES)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any kind."""
    return any(is_kind(kind) for is_kind in LIST_TYPES)


def is_image(kind: pa.DataType) -> bool:
    """Return whether values can be encoded images: binary, or the struct of `bytes` and `path` of Hugging Face datasets."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind)
    return is_binary(kind)


def holds_images(kind: pa.DataType) -> bool:
    """Return whether values can be encoded images, or lists of encoded images."""
    return is_image(kind.value_type if is_list(kind) else kind)


def holds_binary(kind: pa.DataType) -> bool:
    """Return whether a type contains a binary type at any depth."""
    kind = value_type(kind)
    if is_list(kind) or pa.types.is_map(kind):
        return holds_binary(kind.value_type if is_list(kind) else kind.item_type)
    if pa.types.is_struct(kind):
        return any(holds_binary(field.type) for field in kind)
    return is_binary(kind)


def can_name_images(kind: pa.DataType) -> bool:
    """Return whether values can name images: text, numbers and other simple values."""
    return not (holds_binary(kind) or pa.types.is_nested(value_type(kind)))


def describe_columns(schema: pa.Schema, names: list[str]) -> str:
    """Return columns with their types, for a message: `id (int64), name (string)`."""
    return ", ".join(f"{name} ({schema.field(name).type})" for name in names)


def check_columns_exist(columns: list[str], path: str, key: str, names: list[str]) -> None:
    """Check that columns named in the config exist, each once.

    Args:
        columns: names of all columns of the file.
        path: the file, for the message.
        key: key of `source` in the config that names the columns.
        names: the columns that the config names.

    Raises:
        ConfigError: when a column does not exist, or several columns have its name.
    """
    if missing := [name for name in names if name not in columns]:
        raise ConfigError(f"source.{key} = {config_value(key, missing)}; the columns of {path}: {', '.join(columns)}")
    if repeated := [name for name in names if columns.count(name) > 1]:
        value = config_value(key, repeated)
        raise ConfigError(f"source.{key} = {value}: several columns of {path} have this name. Rename them")


def check_carry(schema: pa.Schema, path: str, names: list[str]) -> None:
    """Check that the columns of `source.carry` exist and can be written as JSON.

    Raises:
        ConfigError: when a column does not exist or is binary.
    """
    check_columns_exist(schema.names, path, "carry", names)
    if binary := [name for name in names if holds_binary(schema.field(name).type)]:
        raise ConfigError(f"source.carry = {binary}: {path}: JSON cannot store {describe_columns(schema, binary)}")


def check_key(schema: pa.Schema, path: str, name: str) -> None:
    """Check that the column of `source.key` exists and can name images.

    Raises:
        ConfigError: when the column does not exist, or is binary, a list or a struct.
    """
    check_columns_exist(schema.names, path, "key", [name])
    if not can_name_images(schema.field(name).type):
        column = describe_columns(schema, [name])
        raise ConfigError(f"source.key = {name!r}: {path}: {column} cannot name images. Choose a column of text or numbers")


def config_value(key: str, names: list[str]) -> Any:
    """Return column names in the form that the config key has: a list for `carry`, else one name."""
    return names if key == "carry" else repr(names[0])
