"""The types of a Parquet file's columns: which hold encoded images, which hold text."""

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
    """A type without its dictionary. Types of extensions, such as UUIDs, stay what they are: neither bytes nor text."""
    return value_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def is_binary(kind: pa.DataType) -> bool:
    return any(is_kind(value_type(kind)) for is_kind in BINARY_TYPES)


def is_text(kind: pa.DataType) -> bool:
    return any(is_kind(value_type(kind)) for is_kind in TEXT_TYPES)


def is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in LIST_TYPES)


def is_image(kind: pa.DataType) -> bool:
    """Whether values are encoded images: binary, or the struct of bytes and path in which datasets keeps them."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind)
    return is_binary(kind)


def holds_images(kind: pa.DataType) -> bool:
    """Whether a row has an image, or a list of images."""
    return is_image(kind.value_type if is_list(kind) else kind)


def holds_binary(kind: pa.DataType) -> bool:
    """Whether there is anything binary in a type, however deep."""
    kind = value_type(kind)
    if is_list(kind) or pa.types.is_map(kind):
        return holds_binary(kind.value_type if is_list(kind) else kind.item_type)
    if pa.types.is_struct(kind):
        return any(holds_binary(field.type) for field in kind)
    return is_binary(kind)


def describe_columns(schema: pa.Schema, names: list[str]) -> str:
    """Columns with their types, for a person."""
    return ", ".join(f"{name} ({schema.field(name).type})" for name in names)


def check_columns_exist(there: list[str], path: str, key: str, names: list[str]) -> None:
    """Raises: ConfigError when columns that a key of the config names are not there, or several have such a name."""
    if missing := [name for name in names if name not in there]:
        raise ConfigError(f"source.{key} = {config_value(key, missing)}; the columns of {path}: {', '.join(there)}")
    if twice := [name for name in names if there.count(name) > 1]:
        raise ConfigError(
            f"source.{key} = {config_value(key, twice)}: several columns of {path} have this name: rename them"
        )


def check_carry(schema: pa.Schema, path: str, names: list[str]) -> None:
    """Raises: ConfigError when a column that is to be carried is not there, or cannot be written as JSON."""
    check_columns_exist(schema.names, path, "carry", names)
    if binary := [name for name in names if holds_binary(schema.field(name).type)]:
        raise ConfigError(f"source.carry = {binary}: JSON has no form for {describe_columns(schema, binary)} of {path}")


def check_key(schema: pa.Schema, path: str, name: str) -> None:
    """Raises: ConfigError when the column that is to name images is not there, or is not of text or numbers."""
    check_columns_exist(schema.names, path, "key", [name])
    if not can_name_images(schema.field(name).type):
        raise ConfigError(f"source.key = {name!r}: {path}: {describe_columns(schema, [name])} is no text and no number")


def can_name_images(kind: pa.DataType) -> bool:
    return not (holds_binary(kind) or pa.types.is_nested(value_type(kind)))


def config_value(key: str, names: list[str]) -> Any:
    """Names of columns as they stand in the config."""
    return names if key == "carry" else repr(names[0])
